"""NTK-aware scaling."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod
from ropescale.spectrum import theta_inv_freq


@dataclass(frozen=True, kw_only=True)
class NTKAware(FixedMethod, name="ntk"):
    """NTK-aware: a larger theta, such that the fastest pair is kept and the slowest is slowed by the factor.

    theta' = theta * factor^(d / (d - 2)). bloc97 2023; YaRN, arXiv:2309.00071, equation 16. Middle pairs are
    slowed too little, so the length that works falls short of the one asked for.
    """

    def theta_for(self, geometry: Geometry) -> float:
        """The rescaled theta.

        Raises:
            InvalidArgumentError: a single pair, which cannot be kept and slowed at once.
        """
        if geometry.rotary_dim < 4:
            raise InvalidArgumentError(
                f"ntk: rotary_dim must be at least 4, since the first pair is kept and the last is slowed, got "
                f"{geometry.rotary_dim}; use linear"
            )
        return float(geometry.theta * self.factor ** (geometry.rotary_dim / (geometry.rotary_dim - 2)))

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        rescaled = theta_inv_freq(self.theta_for(geometry), geometry.rotary_dim, base.dtype)
        if not geometry.inv_freq:
            return rescaled
        return base * rescaled / theta_inv_freq(geometry.theta, geometry.rotary_dim, base.dtype)

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        if self.modified or geometry.inv_freq or geometry.attention_factor != 1:
            return self.pairwise_rope_parameters(geometry)
        return {"rope_type": "default", "rope_theta": self.theta_for(geometry)}
