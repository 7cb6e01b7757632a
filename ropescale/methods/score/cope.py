"""Contextual position encoding."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.late import Added, Sizes, WithoutRotation


@dataclass(frozen=True, kw_only=True)
class CoPE(WithoutRotation, name="cope"):
    """Positions that count what matters: a key's is the sum of gates from it to the query.

    Golovneva et al. 2024, arXiv:2405.18719, equations 3 to 5. A gate is the sigmoid of the score as softmax would get
    it, zero where a key is not visible; between whole positions the learned vectors are interpolated. Every layer has
    its own vectors, shared by its heads; they begin at zero, which is `nope`.
    """

    shared: ClassVar[bool] = False

    npos_max: int = 64  # positions that are told apart

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_tokens("npos_max", at_least=2)

    def added(self, geometry: Geometry, sizes: Sizes) -> dict[str, Tensor]:
        return {"vectors": torch.zeros(sizes.head_dim, self.npos_max, dtype=torch.float32)}

    def content_bias(self, query: Tensor, scaling: float, scores: Tensor, distance: Tensor, added: Added) -> Tensor:
        # in float64: cached and uncached sums are of different order, and the vectors multiply what that rounds
        gates = scores.double().sigmoid()
        positions = gates.flip(-1).cumsum(-1).flip(-1).clamp(0, self.npos_max - 1).to(query.dtype)
        by_position = query @ added["vectors"].to(query.dtype)
        below = positions.floor()
        share = positions - below
        lower = by_position.gather(-1, below.long())
        return lower + share * (by_position.gather(-1, positions.ceil().long()) - lower)
