"""The relative bias of T5."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.late import Added, Sizes, WithoutRotation


@dataclass(frozen=True, kw_only=True)
class T5(WithoutRotation, name="t5"):
    """A learned number per head and bucket of distances is added to scores; buckets widen with distance.

    Raffel et al. 2020, arXiv:1910.10683, section 2.1. One table for all layers, as in T5; it begins at zero, which is
    `nope`. T5 itself does not divide scores by the square root of the head's size; the model's own scaling is kept.
    """

    buckets: int = 32
    max_distance: int = 128  # tokens, from which all distances are one bucket

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_tokens("buckets", at_least=2)
        self.require_tokens("max_distance")
        if self.max_distance <= self.buckets // 2:
            raise InvalidArgumentError(
                f"t5: max_distance must be above half the buckets ({self.buckets // 2}), got {self.max_distance}; "
                f"leave it out for 128"
            )

    def added(self, geometry: Geometry, sizes: Sizes) -> dict[str, Tensor]:
        return {"table": torch.zeros(self.buckets, sizes.heads, dtype=torch.float32)}

    def bias(self, geometry: Geometry, distance: Tensor, heads: int, added: Added) -> Tensor:
        return added["table"][self.bucket(distance)].movedim(-1, -3)

    def bucket(self, distance: Tensor) -> Tensor:
        """The bucket of each distance: exact below half the buckets, logarithmic beyond; 0 for what comes later."""
        distance, exact = distance.clamp(min=0), self.buckets // 2
        ratio = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact)
        far = exact + (ratio * (self.buckets - exact)).long()
        return torch.where(distance < exact, distance, far.clamp(max=self.buckets - 1))
