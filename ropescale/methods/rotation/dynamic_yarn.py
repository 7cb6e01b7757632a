"""Dynamic YaRN."""

import math
from dataclasses import dataclass

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.late import LengthDependent
from ropescale.spectrum import Spectrum, base_inv_freq, yarn_inv_freq


@dataclass(frozen=True, kw_only=True)
class DynamicYaRN(LengthDependent, name="dynamic_yarn"):
    """YaRN with the present length over the original length for its factor; the attention factor moves along.

    Peng et al. 2023, arXiv:2309.00071, sections 3.3 and 3.4. The ramp is that of the released code, over pairs, and
    stays anchored at the original length.
    """

    beta_fast: float = 32.0  # turns over the original length, from which a pair is kept
    beta_slow: float = 1.0  # turns over the original length, up to which a pair is slowed by the whole scale
    truncate: bool = True  # widen the pair ramp to whole pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("beta_fast", "beta_slow"):
            self.require_number(knob, at_least=0.001, at_most=LONGEST, hint="turns over the original length")
        if self.beta_slow >= self.beta_fast:
            raise InvalidArgumentError(
                f"dynamic_yarn: beta_slow must be below beta_fast ({self.beta_fast:g}), got {self.beta_slow:g}; "
                f"lower beta_slow or raise beta_fast"
            )

    def rescaled(self, geometry: Geometry, scale: float) -> Spectrum:
        inv_freq = yarn_inv_freq(
            base_inv_freq(geometry), scale, self.beta_fast, self.beta_slow, geometry, truncate=self.truncate
        )
        return Spectrum(inv_freq, (0.1 * math.log(scale) + 1.0) * geometry.attention_factor)
