"""STRING."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.late import LateMethod, Region, same, sharpened, two_regions
from ropescale.spectrum import Spectrum


@dataclass(frozen=True, kw_only=True)
class STRING(LateMethod, name="string"):
    """Shifts large distances down to ones that training saw often: distance - shift + window beyond the shift.

    An et al. 2024, arXiv:2410.18745. It sharpens what lies within the original length and extends nothing. The
    released code also multiplies cosines and sines by 0.1 ln 2 + 1, at all distances, which the paper does not:
    `attention_factor=1.0693` here. In one pass it counts the key at a distance of exactly `shift` twice, but not over
    a cache; here every key counts once.
    """

    shift: int | None = None  # tokens; a third of the original length if not given
    window: int | None = None  # the distance that a shifted one starts from; 128, or half the shift if that is less
    attention_factor: float = 1.0  # multiplies cosines and sines, so scores by its square

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("shift", "window"):
            if getattr(self, knob) is not None:
                self.require_tokens(knob)
        self.require_number("attention_factor", above=0)

    def _bounds(self, geometry: Geometry) -> tuple[int, int]:
        shift = self.shift or max(1, geometry.original_length // 3)
        window = self.window or min(128, max(1, shift // 2))
        if window > shift:
            raise InvalidArgumentError(
                f"string: window must be at most shift ({shift}), got {window}; give both, or leave both out"
            )
        return shift, window

    def stages(self, geometry: Geometry) -> list[Spectrum]:
        return [sharpened(self.base_spectrum(geometry), self.attention_factor)]

    def target_length(self, geometry: Geometry) -> int:
        return geometry.original_length

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        shift, window = self._bounds(geometry)
        distance = query - key
        return torch.where(distance < shift, distance, distance - shift + window), key <= query

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        shift, window = self._bounds(geometry)
        return two_regions(self.stages(geometry)[0], shift, lambda i: i - shift + window, same)
