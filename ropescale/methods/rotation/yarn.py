"""YaRN."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ropescale.checks import require_choice, require_flag
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.base import FixedMethod
from ropescale.spectrum import blended_by_turns, yarn_inv_freq

RAMPS = ("pairs", "turns", "wavelength")


@dataclass(frozen=True, kw_only=True)
class YaRN(FixedMethod, name="yarn"):
    """YaRN: pairs with many turns kept, with few slowed, a ramp between, and sharper attention.

    Peng et al. 2023, arXiv:2309.00071, section 3.4. The paper's ramp is linear in turns; all released code, from
    the authors' to Transformers, vLLM and DeepSeek, ramps over the pair index. `ramp` chooses: "pairs" (released
    code), "turns" (the paper), or "wavelength" (pair ramp, but blending wavelengths instead of frequencies).

    Equal bounds, as Kimi K2 has them, leave no ramp but the pairs that rounding gives.

    The attention factor is `attention_factor` where given; else m(mscale) / m(mscale_all_dim) where both are given
    and not 0; else m(1), with m(x) = 0.1 x ln(factor) + 1.
    """

    beta_fast: float = 32.0  # turns over the original length, from which a pair is kept
    beta_slow: float = 1.0  # turns over the original length, up to which a pair is slowed by the whole factor
    truncate: bool = True  # widen the pair ramp to whole pairs
    ramp: str = "pairs"
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("beta_fast", "beta_slow"):
            self.require_number(knob, at_least=0.001, at_most=LONGEST, hint="turns over the original length")
        self.require_order("beta_slow", "beta_fast")
        require_flag("yarn: truncate", self.truncate, default=True)
        require_choice("yarn: ramp", self.ramp, RAMPS, remedy="leave it out for the ramp of all released code")
        if self.attention_factor is not None:
            self.require_number("attention_factor", above=0)
        for knob in ("mscale", "mscale_all_dim"):
            if getattr(self, knob) is not None:
                self.require_number(knob, at_least=0)

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        if self.ramp == "turns":
            return blended_by_turns(base, self.factor, self.beta_slow, self.beta_fast, geometry)
        return yarn_inv_freq(
            base,
            self.factor,
            self.beta_fast,
            self.beta_slow,
            geometry,
            truncate=self.truncate,
            wavelengths=self.ramp == "wavelength",
        )

    def attention_factor_for(self, geometry: Geometry) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1)

    def _temperature(self, mscale: float) -> float:
        """sqrt(1/t) of equation 22, with DeepSeek's multiplier."""
        return 0.1 * mscale * math.log(self.factor) + 1.0

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        if self.ramp != "pairs":
            return self.pairwise_rope_parameters(geometry)
        # Only what differs from Transformers' own defaults: engines read these keys less reliably than the others
        stated = {"truncate": None if self.truncate else False} | {
            knob: getattr(self, knob) for knob in ("attention_factor", "mscale", "mscale_all_dim")
        }
        return self.native_rope_parameters(
            geometry,
            "yarn",
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            original_max_position_embeddings=geometry.original_length,
            **{knob: value for knob, value in stated.items() if value is not None},
        )
