"""A process may have another default dtype and default device than torch's own: a patch is the same patch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FIXED, LATE, NAMES, family, knobs_for, logits
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import ropescale
from ropescale.checkpoint import added_parameters

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"factor": 4, **knobs_for(name)}) for name in FIXED},
    **{name: (name, {"max_length": 256} if name == "learned" else {}) for name in LATE},
    "dynamic_ntk by alpha": ("dynamic_ntk", {"alpha": 4}),
    "dynamic_yarn exact": ("dynamic_yarn", {"growth": "exact"}),
    "self_extend by division": ("self_extend", {"group_size": 3, "window": 10, "exact": "division"}),
    "nope with DroPE's scale": ("nope", {"factor": 4, "logit_scale": "drope"}),
    "yarn with resonance and log_n": ("yarn", {"factor": 4, "resonance": True, "log_n": True}),
    "longrope with two lists": (
        "longrope",
        {"factor": 4, "long_factor": [1 + pair / 2 for pair in range(8)], "short_factor": [1.0] * 8},
    ),
}
DTYPES = [
    *((case, torch.bfloat16) for case in CASES),
    *((case, torch.float64) for case in ("yarn", "self_extend by division", "cope")),
    *((case, torch.float16) for case in ("yarn", "self_extend by division", "dynamic_yarn")),
]


@contextmanager
def defaults(dtype: torch.dtype, device: str | None = None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def read(model: PreTrainedModel) -> Tensor:
    """[1, 96, vocabulary] logits in one pass and those over a cache, one after the other; added parameters drawn."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 128, (1, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in added_parameters(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * 0.3)
        past, found = DynamicCache(config=model.config), [model(ids).logits]
        for piece in (ids[:, :80], ids[:, 80:95], ids[:, 95:]):
            found.append(model(piece, use_cache=True, past_key_values=past).logits)
    return torch.cat(found, dim=1)


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
@pytest.mark.parametrize(("case", "dtype"), DTYPES)
def test_a_patch_does_not_depend_on_the_defaults_of_the_process(case: str, dtype: torch.dtype) -> None:
    """Neither when it is made nor when it is read; integers that are divided take the default dtype."""
    name, knobs = CASES[case]
    plain, model = family("llama"), family("llama")
    expected, before = read(ropescale.patch(plain, name, **knobs)), logits(model)
    with defaults(dtype, "meta"):
        ropescale.patch(model, name, **knobs)
    assert ropescale.record(model) == ropescale.record(plain)
    assert {name: one.dtype for name, one in model.named_buffers()} == {
        name: one.dtype for name, one in plain.named_buffers()
    }
    with defaults(dtype):
        assert torch.equal(read(model), expected)
    with defaults(dtype, "meta"):
        ropescale.unpatch(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "name", [name for name in ("deepseek_v3", "gemma3_text", "moshi", "phi3", "phimoe") if name in NAMES]
)
def test_families_of_every_kind_are_patched_under_other_defaults(name: str) -> None:
    expected = logits(ropescale.patch(family(name), "yarn", factor=4))
    model = family(name)
    with defaults(torch.bfloat16, "meta"):
        ropescale.patch(model, "yarn", factor=4)
    assert torch.equal(logits(model), expected)


def test_rescaling_and_loading_do_not_depend_on_them(tmp_path: Path) -> None:
    model = family("llama")
    model.save_pretrained(tmp_path / "source")
    expected = logits(ropescale.patch(model, "yarn", factor=4))
    with defaults(torch.bfloat16, "meta"):
        folder = ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "rescaled", factor=4)
    assert torch.equal(logits(ropescale.load(folder)), expected)
    with defaults(torch.bfloat16):
        loaded = ropescale.load(folder, dtype=torch.float32)
    assert torch.equal(logits(loaded), expected)
