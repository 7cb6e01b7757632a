"""Giraffe's truncated basis."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod


@dataclass(frozen=True, kw_only=True)
class Truncated(FixedMethod, name="truncated"):
    """Truncated basis: pairs that turn within the cut-off kept, slower ones set to one speed, the slowest stopped.

    With b = 2 pi / cutoff_length: inverse frequencies from b up are kept, from b/8 up become b/16, below become 0.
    Pal et al. 2023 (Giraffe), arXiv:2308.10882, section 3.1; the factor only sets the target. Good perplexity,
    worse retrieval; needs a fine-tune. The released code may divide by a scale and take a power before; here it is the
    base frequencies that are cut.
    """

    lawless: ClassVar[dict[str, str]] = {
        "identity": "the cut-off alone sets the frequencies and the factor only sets the target",
        "descending": "pairs between the bounds share one frequency, and those below have none",
        "stretch": "pairs below the cut-off lose their position altogether",
    }

    cutoff_length: float | None = None  # tokens within which a kept pair turns once; None is the original length

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cutoff_length is not None:
            self.require_number("cutoff_length", above=0)

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        bound = 2 * math.pi / (self.cutoff_length or geometry.original_length)
        slower = torch.where(base >= bound / 8, torch.full_like(base, bound / 16), torch.zeros_like(base))
        return torch.where(base >= bound, base, slower)
