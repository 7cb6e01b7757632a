"""Small Llamas patched with every method that acts when attention reads, and how they are read."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch
from families import LATE
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

import ropescale

ORIGINAL = 32  # tokens that the model of these tests was pretrained for
LENGTH = 90  # tokens that it reads
TOLERANCE = 5e-4  # of a logit; the unpatched model's cached and uncached decoding differ by 1e-4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"max_length": 128} if name == "learned" else {}) for name in LATE},
    "dynamic_ntk by alpha": ("dynamic_ntk", {"alpha": 4}),
    "dynamic_yarn exact": ("dynamic_yarn", {"growth": "exact"}),
    "dynamic_yarn with a ceiling": ("dynamic_yarn", {"factor": 2}),
    "self_extend by division": ("self_extend", {"group_size": 3, "window": 10, "exact": "division"}),
    "dynamic_self_extend with a ceiling": ("dynamic_self_extend", {"factor": 2}),
    "dynamic_self_extend with log_n": ("dynamic_self_extend", {"log_n": True}),
    "dpe of odd sizes": ("dpe", {"groups": (1, 3, 2, 7, 5, 2, 4, 6), "window": 10}),
    "lm_infinite with a near limit": ("lm_infinite", {"local": 20, "limit": 8, "sinks": 3}),
    "lm_infinite with a far limit": ("lm_infinite", {"local": 9, "limit": 25, "sinks": 3}),
    "dual_chunk of odd sizes": ("dual_chunk", {"chunk": 13, "local": 4}),
    "dual_chunk with a wide border": ("dual_chunk", {"chunk": 13, "local": 9, "attention_factor": 1.1}),
    "string with its code's factor": ("string", {"attention_factor": 1.0693}),
    "nope with DroPE's scale": ("nope", {"factor": 4, "logit_scale": "drope"}),
    "yarn with log_n": ("yarn", {"factor": 2, "log_n": True}),
    "rerope with log_n": ("rerope", {"log_n": True}),
    "yarn with llama4": ("yarn", {"factor": 3, "temperature": "llama4:0.4"}),
    "yarn with drope": ("yarn", {"factor": 3, "temperature": "drope:0.5"}),
    "self_extend with yarn by length": ("self_extend", {"temperature": "yarn:0.3"}),
    "dynamic_ntk with scalable": ("dynamic_ntk", {"temperature": "scalable"}),
    "longrope with two lists": (
        "longrope",
        {
            "factor": 4,
            "long_factor": [1 + pair / 2 for pair in range(8)],
            "short_factor": [1 + pair / 9 for pair in range(8)],
        },
    ),
}
CASES["longrope with a prefix"] = ("longrope", {**CASES["longrope with two lists"][1], "unscaled_prefix": 7})
every_case = pytest.mark.parametrize("case", CASES)
# For what takes seconds; a method with other knobs is read in every way all the same
every_method = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in LATE else pytest.mark.slow) for case in CASES]
)


def llama() -> LlamaForCausalLM:
    """Four layers with weights so large that a wrong definition errs by whole logits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=ORIGINAL,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


@cache
def unpatched() -> LlamaForCausalLM:
    return llama()


def patched(case: str) -> LlamaForCausalLM:
    """A patched model whose added parameters are drawn large enough to show.

    CoPE multiplies what rounding does to a gate by its vectors, layer after layer: in float32 such a model is off by
    1e-3 of a logit between any two orders of summation. It is compared in float64, where only the softmax rounds.
    """
    name, knobs = CASES[case]
    model = ropescale.patch(llama(), name, **knobs)
    model = model.double() if name == "cope" else model
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in added(model).values():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def added(model: LlamaForCausalLM) -> dict[str, torch.nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if ".ropescale." in name}


CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def over(past: Any) -> dict[str, Any]:
    """The keyword by which this version of Transformers takes a cache."""
    return {CACHE: past}


def prompts(rows: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def read(model: LlamaForCausalLM, pieces: Any, past: Any, **given: Any) -> Tensor:
    """Logits of all pieces, one after another over a cache."""
    return torch.cat([model(piece, **over(past), **given).logits for piece in pieces], dim=1)


def compiled(model: LlamaForCausalLM, ids: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """Logits of a model in one graph: of a row in one pass, and of its tokens from `begin` on over a static cache."""
    torch._dynamo.reset()
    graph = torch.compile(model.forward, fullgraph=True, backend="eager")
    at_once = graph(ids, use_cache=False).logits
    n, cache = ids.shape[1], StaticCache(config=model.config, max_cache_len=64)
    model(ids[:, :begin], **over(cache))
    steps: list[Tensor] = [
        graph(ids[:, at : at + 1], **over(cache), position_ids=torch.tensor([[at]])).logits for at in range(begin, n)
    ]
    return at_once, torch.cat(steps, dim=1)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.fixture(autouse=True)
def no_grad(request: pytest.FixtureRequest) -> Any:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def padded(model: nn.Module, ids: Tensor, *, positions: bool) -> Tensor:
    """Logits of a row behind twenty tokens of padding, told where its tokens stand or not."""
    rows, mask = (
        torch.cat((torch.zeros(1, 20, dtype=torch.long), real), dim=1) for real in (ids, torch.ones_like(ids))
    )
    told = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if positions else {}
    return model(rows, attention_mask=mask, **told).logits[:, 20:]
