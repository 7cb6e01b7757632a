"""Proportional rotary embedding (p-RoPE)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod


@dataclass(frozen=True, kw_only=True)
class Proportional(FixedMethod, name="proportional"):
    """Proportional: the fastest pairs slowed by the factor, the rest without position.

    Barbero et al. 2024 (p-RoPE), arXiv:2410.06205, section 6; Transformers' `proportional`. A proportion of 1 is
    linear; below that it needs training.
    """

    lawless: ClassVar[dict[str, str]] = {
        "identity": "pairs beyond the proportion lose their position",
        "descending": "pairs beyond the proportion all stand at 0",
        "stretch": "pairs beyond the proportion lose their position",
    }

    partial_rotary_factor: float  # the proportion of pairs that keep rotating

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("partial_rotary_factor", above=0, at_most=1)

    def laws_broken(self) -> dict[str, str]:
        return super().laws_broken() if self.modified or self.partial_rotary_factor < 1 else {}

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        # floored, as Transformers does
        rotating = torch.arange(geometry.pairs) < int(self.partial_rotary_factor * geometry.rotary_dim // 2)
        return torch.where(rotating, base / self.factor, torch.zeros_like(base))
