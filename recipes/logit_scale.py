"""The logit scale of DroPE: what a model without positions multiplies its logits by in a longer context, fitted by
perplexity at the target length (arXiv:2512.12167, section 4.3).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ropescale.patching import patch, record, unpatch
from ropescale.recipes.evaluation import Yardstick
from ropescale.temperature import least

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

    def perplexity(coefficient: float) -> float:
        put(coefficient)
        return measure.perplexity(model, length)

    def put(coefficient: float) -> None:
        unpatch(model)
        scale: dict[str, Any] = {"logit_scale": "drope", "coefficient": coefficient}
        kept: dict[str, Any] = {"temperature": done.temperature, "existing": done.existing, "layers": done.layers}
        patch(model, "nope", factor=factor, **kept, **scale)

    best, tried = least(perplexity, HIGHEST, steps=STEPS)
    put(best)
    return {
        "coefficient": best,
        "factor": factor,
        "length": length,
        "tried": [{"coefficient": coefficient, "perplexity": tried[coefficient]} for coefficient in sorted(tried)],
    }
