"""NTK-RoPE mixed: between position interpolation and the fixed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod


@dataclass(frozen=True, kw_only=True)
class NTKMixed(FixedMethod, name="ntk_mixed"):
    """NTK-RoPE mixed: pair m, counted from 1, slowed by exp(a m^b), with a such that the last is slowed by factor.

    Su Jianlin 2023, kexue.fm/archives/9706. b=1 is ntk_fixed, b=0 is linear; the text gives 0.625, the author's
    released patch uses 0.75, and log-n, which is `log_n=True` here.
    """

    b: float = 0.625  # how fast stretching sets in with the pair index: 0 at once, 1 evenly

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("b", at_least=0)

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        order = torch.arange(1, geometry.pairs + 1, dtype=torch.float64) / geometry.pairs
        return (base * torch.exp(-math.log(self.factor) * order**self.b)).to(base.dtype)
