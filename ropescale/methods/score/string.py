"""STRING."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.late import LateMethod, Region, same, two_regions


@dataclass(frozen=True, kw_only=True)
class STRING(LateMethod, name="string"):
    """Shifts large distances down to ones that training saw often: distance - shift + window beyond the shift.

    An et al. 2024, arXiv:2410.18745. It sharpens what lies within the original length and extends nothing. The
    released code counts the key at a distance of exactly `shift` twice; here every key counts once.
    """

    shift: int | None = None  # tokens; a third of the original length if not given
    window: int | None = None  # the distance that a shifted one starts from; 128, or half the shift if that is less

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("shift", "window"):
            if getattr(self, knob) is not None:
                self.require_tokens(knob)

    def _bounds(self, geometry: Geometry) -> tuple[int, int]:
        shift = self.shift or max(1, geometry.original_length // 3)
        window = self.window or min(128, max(1, shift // 2))
        if window > shift:
            raise InvalidArgumentError(
                f"string: window must be at most shift ({shift}), got {window}; give both, or leave both out"
            )
        return shift, window

    def target_length(self, geometry: Geometry) -> int:
        return geometry.original_length

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        shift, window = self._bounds(geometry)
        distance = query - key
        return torch.where(distance < shift, distance, distance - shift + window), key <= query

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        shift, window = self._bounds(geometry)
        return two_regions(self.base_spectrum(geometry), shift, lambda i: i - shift + window, same)
