"""The logit scale of DroPE: what a model without positions multiplies its logits by in a longer context, fitted by
perplexity at the target length (arXiv:2512.12167, section 4.3).
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ropescale.patching import patch, record, unpatch
from ropescale.recipes.evaluation import Yardstick

HIGHEST = 1.0  # coefficient of ln(factor); the paper's are 0.103 and 0.412
STEPS = 10  # of the search: the bracket shrinks to 1 % of itself


def fitted_logit_scale(model: nn.Module, measure: Yardstick, target_length: int) -> dict[str, Any]:
    """Patch the model with the coefficient of least perplexity at the target length, and say what was tried.

    The scale is 1 + coefficient * ln(factor). Golden-section search; perplexity has one valley in the coefficient.
    """
    done = record(model)
    assert done is not None
    factor = target_length / done.original_length
    length = min(target_length, measure.lengths[-1])
    tried: dict[float, float] = {}

    def perplexity(coefficient: float) -> float:
        unpatch(model)
        scale: dict[str, Any] = {"logit_scale": "drope", "coefficient": coefficient}
        patch(
            model,
            "nope",
            factor=factor,
            temperature=done.temperature,
            existing=done.existing,
            layers=done.layers,
            **scale,
        )
        if coefficient not in tried:
            tried[coefficient] = measure.perplexity(model, length)
        return tried[coefficient]

    low, high, golden = 0.0, HIGHEST, (math.sqrt(5) - 1) / 2
    perplexity(low)  # so that no scale at all is among what was tried
    left, right = high - golden * (high - low), low + golden * (high - low)
    for _ in range(STEPS):
        if perplexity(left) <= perplexity(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    best = min(tried, key=lambda coefficient: tried[coefficient])
    perplexity(best)
    return {
        "coefficient": best,
        "factor": factor,
        "length": length,
        "tried": [{"coefficient": coefficient, "perplexity": tried[coefficient]} for coefficient in sorted(tried)],
    }
