"""Requests as the harness makes them, and what a model really reads of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ropescale.evals.texts import sample

TEXT = sample()[0].text
GREEDY = {"until": ["."], "max_gen_toks": 12, "do_sample": False}


def harness(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **arguments: Any) -> HFLM:
    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), **arguments)


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def scored(pairs: Sequence[tuple[str, str]]) -> list[Instance]:
    return [request("loglikelihood", *pair) for pair in pairs]


def rolling(texts: Sequence[str]) -> list[Instance]:
    return [request("loglikelihood_rolling", text) for text in texts]


def prompted(prompts: Sequence[str], **changes: Any) -> list[Instance]:
    return [request("generate_until", prompt, {**GREEDY, **changes}) for prompt in prompts]


@contextmanager
def reads(model: nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of ids that the model's embedding sees: what is really read."""
    seen: list[tuple[int, ...]] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    try:
        yield seen
    finally:
        hook.remove()
