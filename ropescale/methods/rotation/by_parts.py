"""NTK-by-parts, as the YaRN paper defines it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod
from ropescale.spectrum import blended_by_turns


@dataclass(frozen=True, kw_only=True)
class NTKByParts(FixedMethod, name="by_parts"):
    """NTK-by-parts: pairs with many turns over the original length kept, with few slowed, blended between.

    YaRN, arXiv:2309.00071, equations 17-20. The blend is linear in turns: this is not yarn without its
    attention factor, whose released ramp is linear in the pair index (at theta 10,000 and 4,096 tokens, frequencies
    down to 0.77 of yarn's with factor 2, 0.58 with 4, 0.43 with 8). The authors' first release mixed linear and NTK
    frequencies instead, and is not offered.
    """

    alpha: float = 1.0  # turns over the original length, up to which a pair is slowed by the whole factor
    beta: float = 32.0  # turns over the original length, from which a pair is kept

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("alpha", above=0)
        self.require_number("beta", above=0)
        self.require_order("alpha", "beta")

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        return blended_by_turns(base, self.factor, self.alpha, self.beta, geometry)

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        return self.native_rope_parameters(
            geometry,
            "llama3",
            low_freq_factor=self.alpha,
            high_freq_factor=self.beta,
            original_max_position_embeddings=geometry.original_length,
        )
