"""MrRoPE."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.checks import require_choice
from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod
from ropescale.spectrum import bounds_by_turns, slowed

VARIANTS = ("pro", "uni")


@dataclass(frozen=True, kw_only=True)
class MrRoPE(FixedMethod, name="mrrope"):
    """MrRoPE: pairs with many turns kept, with few slowed, steps of the exponent between, and sharper attention.

    Tian et al. 2026, arXiv:2601.22181, section 3: pair k slowed by factor^e, with t = clip(k - lo, 0, n) and
    n = hi - lo between the last pair lo with 32 turns over the original length and the first hi with one. "uni" takes
    equal steps, e = t / n, and "pro" growing ones, e = t (t + 1) / (n (n + 1)). The attention factor is yarn's.

    The bounds are those of the authors' released code (which has "uni" alone), pairs of theta's series: the first
    where none turns as often as 32 times, and one beyond the last where all turn more than once, so that the last is
    slowed by less than the factor. Where no pair turns more than once all are slowed by the whole factor; the released
    code keeps the first there.
    """

    variant: str = "pro"  # or "uni"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("mrrope: variant", self.variant, VARIANTS, remedy="leave it out for 'pro'")

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        low, high = bounds_by_turns(32, 1, geometry)
        if high <= low:  # nothing lies between
            exponent = (torch.arange(geometry.pairs) >= high).double()
        else:
            steps = high - low
            step = (torch.arange(geometry.pairs, dtype=torch.float64) - low).clamp(0, steps)
            exponent = step / steps if self.variant == "uni" else step * (step + 1) / (steps * (steps + 1))
        return slowed(base, (self.factor**exponent).to(base.dtype), geometry)

    def attention_factor_for(self, geometry: Geometry) -> float:
        return 0.1 * math.log(self.factor) + 1.0
