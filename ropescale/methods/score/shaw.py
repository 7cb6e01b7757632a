"""The relative positions of Shaw, Uszkoreit and Vaswani."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.late import Added, Sizes, WithoutRotation


@dataclass(frozen=True, kw_only=True)
class Shaw(WithoutRotation, name="shaw"):
    """A learned vector per distance is added to keys, and another one to values.

    Shaw et al. 2018, arXiv:1803.02155, equations 3 and 4. Every layer has its own vectors, shared by its heads; they
    begin at zero, which is `nope`.
    """

    shared: ClassVar[bool] = False

    clip: int = 16  # tokens, from which all distances are one

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_tokens("clip")

    def added(self, geometry: Geometry, sizes: Sizes) -> dict[str, Tensor]:
        widths = {"key_vectors": sizes.head_dim, "value_vectors": sizes.value_dim}
        return {name: torch.zeros(self.clip + 1, width, dtype=torch.float32) for name, width in widths.items()}

    def content_bias(self, query: Tensor, scaling: float, scores: Tensor, distance: Tensor, added: Added) -> Tensor:
        by_distance = query * scaling @ added["key_vectors"].to(query.dtype).T
        return by_distance.gather(-1, self._index(distance, scores))

    def content_value(self, weights: Tensor, distance: Tensor, added: Added) -> Tensor:
        none = weights.new_zeros(*weights.shape[:-1], self.clip + 1)
        return none.scatter_add(-1, self._index(distance, weights), weights) @ added["value_vectors"].to(weights.dtype)

    def _index(self, distance: Tensor, like: Tensor) -> Tensor:
        return distance.clamp(0, self.clip).expand_as(like)
