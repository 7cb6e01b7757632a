"""Giraffe's power basis."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod


@dataclass(frozen=True, kw_only=True)
class Power(FixedMethod, name="power"):
    """Power basis: pair i of d/2 slowed by (1 - 2i/d)^-k; the factor only sets the target.

    Pal et al. 2023 (Giraffe), arXiv:2308.10882, section 3.1. Needs a fine-tune. The released code may also divide by a
    scale, truncate the result, and draw positions at random; here each is a method of its own, or not offered.
    """

    lawless: ClassVar[dict[str, str]] = {
        "identity": "k alone sets the frequencies and the factor only sets the target",
        "stretch": "k alone sets the frequencies and the factor only sets the target",
    }

    k: float = 0.1  # the larger, the slower the slow pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("k", at_least=0)

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        left = 1 - torch.arange(geometry.pairs, dtype=torch.float64) / geometry.pairs
        return (base * left**self.k).to(base.dtype)
