"""Leaky ReRoPE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.late import LateMethod, Region, two_regions


@dataclass(frozen=True, kw_only=True)
class LeakyReRoPE(LateMethod, name="leaky_rerope"):
    """Distances up to a window as they are, and beyond it more slowly: window + (distance - window) / stretch.

    Su 2023, https://kexue.fm/archives/9708; the author's code has a window of 512 tokens, of 4,096, and multiplies
    queries by log-n too, which is `window=512, log_n=True` here.
    """

    window: int | None = None  # tokens; half the original length if not given
    stretch: float = 16.0  # tokens beyond the window that count as one

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            self.require_tokens("window")
        self.require_number("stretch", at_least=1)

    def window_for(self, geometry: Geometry) -> int:
        """Tokens of the window."""
        return self.window or max(1, geometry.original_length // 2)

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        window, distance = self.window_for(geometry), query - key
        far = window + (distance - window).float() / self.stretch
        return torch.where(distance < window, distance.to(far.dtype), far), key <= query

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        window = self.window_for(geometry)
        return two_regions(
            self.base_spectrum(geometry),
            window,
            lambda i: i.float() / self.stretch + (window - window / self.stretch),
            lambda j: j.float() / self.stretch,
        )
