"""NTK-RoPE as Su Jianlin fixed it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod


@dataclass(frozen=True, kw_only=True)
class NTKFixed(FixedMethod, name="ntk_fixed"):
    """NTK-RoPE fixed: pair m of d/2, counted from 1, slowed by factor^(2m/d).

    Su Jianlin 2023, kexue.fm/archives/9706. Counting from 1 slows the first pair a little as well, which is the
    difference from ntk.
    """

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        order = torch.arange(1, geometry.pairs + 1, dtype=torch.float64) / geometry.pairs
        return (base * self.factor**-order).to(base.dtype)
