"""Sinusoidal positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.methods.late import Added, WithoutRotation

THETA = 10000.0  # the paper's, for every model


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(WithoutRotation, name="sinusoidal"):
    """Sines and cosines of the position, added to the vectors that enter the first layer.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5: sines at even elements, cosines at odd ones.
    """

    def embedding(self, position: Tensor, hidden: int, added: Added) -> Tensor:
        series = torch.arange(0, hidden, 2, device=position.device).double() / hidden
        angles = position[..., None].double() * THETA**-series
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :hidden].float()
