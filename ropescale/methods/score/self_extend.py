"""Self-Extend."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.checks import require_choice
from ropescale.geometry import Geometry
from ropescale.methods.late import LateMethod, Region, two_regions

EXACT = ("division", "floor")


@dataclass(frozen=True, kw_only=True)
class SelfExtend(LateMethod, name="self_extend"):
    """Distances below a window as they are; beyond it positions count in groups.

    Jin et al. 2024, arXiv:2401.01325, equation 4: floor(i / G) - floor(j / G) + W - floor(W / G). The released code
    shifts by W - W / G in one pass, which is `exact="division"`, and by the paper's shift when it decodes over a cache
    with flash attention; the two are one where G divides W. It drops the shift while no query has reached the window,
    when no pair is read in groups. Its log-n scale is `log_n=True`.
    """

    group_size: int = 8  # positions that count as one
    window: int | None = None  # tokens; 1,024, or half the original length if that is less
    exact: str = "floor"  # or "division"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_tokens("group_size")
        if self.window is not None:
            self.require_tokens("window")
        require_choice("self_extend: exact", self.exact, EXACT, remedy="leave it out for the paper's floor")

    def window_for(self, geometry: Geometry) -> int:
        """Tokens of the window."""
        return self.window or min(1024, max(1, geometry.original_length // 2))

    def target_length(self, geometry: Geometry) -> int:
        window = self.window_for(geometry)
        return max(geometry.original_length, (geometry.original_length - window) * self.group_size + window)

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        distance = query - key
        far = self._shifted(query // self.group_size - key // self.group_size, geometry)
        return torch.where(distance < self.window_for(geometry), distance, far), key <= query

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        return two_regions(
            self.base_spectrum(geometry),
            self.window_for(geometry),
            lambda i: self._shifted(i // self.group_size, geometry),
            lambda j: j // self.group_size,
        )

    def _shifted(self, groups: Tensor, geometry: Geometry) -> Tensor:
        """Groups as distances that continue those of the window; float32 where the shift is no whole number."""
        window = self.window_for(geometry)
        if self.exact == "floor":
            return groups + (window - window // self.group_size)
        return groups.float() + (window - window / self.group_size)
