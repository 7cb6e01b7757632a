"""ALiBi."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.late import Added, WithoutRotation


@dataclass(frozen=True, kw_only=True)
class ALiBi(WithoutRotation, name="alibi"):
    """Scores fall linearly with distance, in every head at a slope of its own.

    Press et al. 2022, arXiv:2108.12409, section 3.
    """

    def bias(self, geometry: Geometry, distance: Tensor, heads: int, added: Added) -> Tensor:
        slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=distance.device)
        return -slopes[:, None, None] * distance[..., None, :, :].float()


def alibi_slopes(heads: int) -> list[float]:
    """One slope per head: 2^(-8 h / H) for H heads, h from 1.

    Where H is no power of two: the slopes of the largest one below, then every other slope of twice that.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return [*slopes, *between[: heads - power]]
