"""The scaling of Llama 3.1."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod
from ropescale.spectrum import blended_by_turns


@dataclass(frozen=True, kw_only=True)
class Llama3(FixedMethod, name="llama3"):
    """Llama 3.1 scaling: the function of by_parts, with bounds found by grid search.

    Meta llama-models, `apply_scaling`. Published with factor 8 over 8,192 tokens;
    Llama 4 Scout has equal bounds, which leave nothing between.
    """

    low_freq_factor: float = 1.0  # turns over the original length, up to which a pair is slowed by the whole factor
    high_freq_factor: float = 4.0  # turns over the original length, from which a pair is kept

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("low_freq_factor", above=0)
        self.require_number("high_freq_factor", above=0)
        self.require_order("low_freq_factor", "high_freq_factor")

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        return blended_by_turns(base, self.factor, self.low_freq_factor, self.high_freq_factor, geometry)

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        return self.native_rope_parameters(
            geometry,
            "llama3",
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
            original_max_position_embeddings=geometry.original_length,
        )
