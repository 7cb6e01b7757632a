"""Dynamic NTK."""

from dataclasses import dataclass

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.late import LengthDependent
from ropescale.spectrum import Spectrum, base_inv_freq, theta_inv_freq


@dataclass(frozen=True, kw_only=True)
class DynamicNTK(LengthDependent, name="dynamic_ntk"):
    """A theta that grows with the present length: theta' = theta * s^(d / (d - 2)).

    emozilla 2023; YaRN, arXiv:2309.00071, section 3.3, with s = present length / original length. With `alpha` it is
    the formula of Transformers, s = alpha * length / L - (alpha - 1), where alpha is called factor.
    """

    alpha: float | None = None  # how steeply theta grows; 1 is the paper's formula

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            self.require_number("alpha", at_least=1)

    def rescaled(self, geometry: Geometry, scale: float) -> Spectrum:
        if geometry.rotary_dim < 4:
            raise InvalidArgumentError(
                f"dynamic_ntk: rotary_dim must be at least 4, since the first pair is kept and the last is slowed, "
                f"got {geometry.rotary_dim}; use dynamic_linear"
            )
        alpha = 1.0 if self.alpha is None else self.alpha
        growth = alpha * scale - (alpha - 1)
        theta = geometry.theta * growth ** (geometry.rotary_dim / (geometry.rotary_dim - 2))
        inv_freq = theta_inv_freq(theta, geometry.rotary_dim)
        if geometry.inv_freq:
            inv_freq = base_inv_freq(geometry) * inv_freq / theta_inv_freq(geometry.theta, geometry.rotary_dim)
        return Spectrum(inv_freq, geometry.attention_factor)
