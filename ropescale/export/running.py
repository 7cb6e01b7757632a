"""What an engine is asked for: greedy tokens, and the log-probabilities of the whole vocabulary at each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ropescale.injection.places import cache_keyword

Prompt = list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What an engine generated from one prompt."""

    tokens: list[int]  # the greedy choice at each step
    logprobs: np.ndarray[Any, Any]  # [steps, vocabulary] float32, nan where the engine gave none


@torch.no_grad()
def generated(model: Any, prompt: Prompt, steps: int, tokens: Sequence[int] | None = None) -> Run:
    """What a model generates token by token with its cache: its own choices, or these tokens whatever it chooses."""
    ids, cache, keyword = torch.tensor([prompt]), None, cache_keyword(model)
    chosen, logprobs = [], []
    for step in range(steps):
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{keyword: cache})
        cache = out[keyword]
        logprobs.append(torch.log_softmax(out.logits[0, -1].float(), dim=-1).numpy())
        chosen.append(int(logprobs[-1].argmax()) if tokens is None else tokens[step])
        ids = torch.tensor([[chosen[-1]]])
    return Run(tokens=chosen, logprobs=np.stack(logprobs))
