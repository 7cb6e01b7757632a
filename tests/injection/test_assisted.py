"""A draft model beside a patched one: what it proposes is taken only where the patched model says the same."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import ropescale
from ropescale.evals.texts import documents
from ropescale.evals.tokens import named_tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "yarn": {"factor": 4},
    "dynamic_yarn": {"factor": 4},
    "dynamic_self_extend": {"factor": 4, "log_n": True},
    "rerope": {"window": 32},
}
NEW = 30  # tokens


def draft() -> PreTrainedModel:
    """The embedded model with some noise on its weights: mostly of the same opinion."""
    model = ropescale.load("tiny").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std(), alpha=0.05)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_saves_calls_and_changes_nothing_and_saves_more_where_it_is_patched_too(method: str) -> None:
    target = ropescale.patch(ropescale.load("tiny").eval(), method, **METHODS[method])
    calls = []
    target.register_forward_pre_hook(lambda *_: calls.append(1))
    prompt = named_tokenizer("tiny")(documents("sample")[0].text, return_tensors="pt").input_ids[:, :400]

    def generated(**more: Any) -> tuple[list[int], int]:
        calls.clear()
        tokens = target.generate(prompt, max_new_tokens=NEW, do_sample=False, **more)
        return tokens[0, prompt.shape[1] :].tolist(), len(calls)

    alone, every = generated()
    by_unpatched, some = generated(assistant_model=draft())
    by_patched, few = generated(assistant_model=ropescale.patch(draft(), method, **METHODS[method]))
    by_lookup, _ = generated(prompt_lookup_num_tokens=4)
    assert (len(alone), every) == (NEW, NEW)
    assert by_unpatched == by_patched == by_lookup == alone
    assert few < some < every
