"""Position interpolation."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod


@dataclass(frozen=True, kw_only=True)
class Linear(FixedMethod, name="linear"):
    """Position interpolation: every pair slowed down by the factor.

    Chen et al. 2023, arXiv:2306.15595, equation 3; kaiokendev. Blurs neighbouring positions, so it needs a
    fine-tune (about 1,000 steps in the paper) and works badly without one beyond a factor of 2.
    """

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        return base / self.factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        return self.native_rope_parameters(geometry, "linear")
