"""Adjusted base frequency."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod
from ropescale.spectrum import theta_inv_freq


@dataclass(frozen=True, kw_only=True)
class ABF(FixedMethod, name="abf"):
    """Adjusted base frequency: another theta, of the caller's choice; the factor only sets the target.

    Xiong et al. 2023, arXiv:2309.16039, section 2.2 (10,000 to 500,000, then continued pretraining).
    """

    lawless: ClassVar[dict[str, str]] = {
        "identity": "theta is the caller's and the factor only sets the target",
        "stretch": "theta is the caller's and the factor only sets the target",
    }

    theta: float  # the new base of the geometric series

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("theta", above=1, at_most=1e30)  # float32 ends at 3e38

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        rescaled = theta_inv_freq(self.theta, geometry.rotary_dim, base.dtype)
        if not geometry.inv_freq:
            return rescaled
        return base * rescaled / theta_inv_freq(geometry.theta, geometry.rotary_dim, base.dtype)

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        if self.modified or geometry.inv_freq or geometry.attention_factor != 1:
            return self.pairwise_rope_parameters(geometry)
        return {"rope_type": "default", "rope_theta": self.theta}
