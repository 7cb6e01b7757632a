"""What reading the target costs as recommended: memory by formula, and time measured in pairs on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from ropescale import memory
from ropescale.checkpoint import counted
from ropescale.patching import put_in, unpatch
from ropescale.request import Request

PAIRS = 3  # timed, after one that warms up
ELEMENT = 2  # bytes of a weight and of a cache entry of a model that serves


def memory_at(model: str, lengths: Sequence[int]) -> Mapping[int, memory.Need]:
    """Length -> what answering one prompt of so many tokens needs in bfloat16."""
    config, parameters = counted(model)
    return {n: memory.need(config, parameters=parameters, length=n, element=ELEMENT) for n in lengths}


@torch.inference_mode()
def slower(model: PreTrainedModel, request: Request, length: int) -> float:
    """The time of reading one row of so many tokens, as a request has it over the model as it is; the median of pairs.

    The model is left as it was.
    """
    row = torch.zeros(1, length, dtype=torch.long, device=model.device)

    def seconds() -> float:
        began = time.perf_counter()
        model(input_ids=row, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - began

    ratios = []
    for _ in range(1 + PAIRS):
        before = seconds()
        put_in(model, request)
        try:
            ratios.append(seconds() / before)
        finally:
            unpatch(model)
    return statistics.median(ratios[1:])
