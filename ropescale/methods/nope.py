"""NoPE."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.checks import require_choice
from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.late import WithoutRotation

LOGIT_SCALES = ("drope", "none")


@dataclass(frozen=True, kw_only=True)
class NoPE(WithoutRotation, name="nope"):
    """No positions but the causal mask.

    Kazemnejad et al. 2023, arXiv:2305.19466. Recalibrated at the original length it is DroPE (Gelberg et al. 2025,
    arXiv:2512.12167), which for a longer context multiplies logits by 1 + coefficient * ln(factor), fitted by
    perplexity at the target length.
    """

    logit_scale: str = "none"  # or "drope"
    coefficient: float = 0.103  # of "drope"; the paper's for SmolLM-360M

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("nope: logit_scale", self.logit_scale, LOGIT_SCALES, remedy="leave it out for 'none'")
        self.require_number("coefficient", at_least=0)
        if self.logit_scale == "drope" and self.factor is None:
            raise InvalidArgumentError(
                "nope: factor is required for logit_scale 'drope', got none; give factor or target_length"
            )

    def query_scale(self, geometry: Geometry, query: Tensor) -> Tensor | None:
        if self.logit_scale == "none" or self.factor is None:
            return None
        return torch.full(
            query.shape, 1 + self.coefficient * math.log(self.factor), dtype=torch.float32, device=query.device
        )
