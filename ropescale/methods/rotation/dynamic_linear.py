"""Dynamic position interpolation."""

from dataclasses import dataclass

from ropescale.geometry import Geometry
from ropescale.methods.late import LengthDependent
from ropescale.spectrum import Spectrum, base_inv_freq, slowed


@dataclass(frozen=True, kw_only=True)
class DynamicLinear(LengthDependent, name="dynamic_linear"):
    """Slows every pair by present length / original length, and by nothing below the original length.

    kaiokendev and emozilla 2023; YaRN, arXiv:2309.00071, section 3.3. What is present is what the query sees.
    """

    def rescaled(self, geometry: Geometry, scale: float) -> Spectrum:
        return Spectrum(slowed(base_inv_freq(geometry), scale, geometry), geometry.attention_factor)
