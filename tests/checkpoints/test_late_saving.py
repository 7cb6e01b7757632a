"""Methods that act when attention reads go in and out of a model, and on disk."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import fingerprint
from late import (
    CASES,
    ORIGINAL,
    apart,
    every_case,
    llama,
    no_grad,  # noqa: F401  # a fixture of every test here
    patched,
    prompts,
    unpatched,
)
from transformers import (
    LlamaConfig,
)

import ropescale
from ropescale.errors import (
    AlreadyScaledError,
    RopescaleError,
)


@pytest.mark.sampled(3)
@every_case
def test_undoing_brings_every_bit_back(case: str) -> None:
    model, ids = llama(), prompts(length=40)
    before, config, native = fingerprint(model), model.config.to_dict(), model(ids).logits
    name, knobs = CASES[case]
    with ropescale.patched(model, name, **knobs):
        assert {key: value for key, value in fingerprint(model).items() if ".ropescale." not in key} == before
        assert apart(copy.deepcopy(model)(ids).logits, model(ids).logits) == 0
    assert torch.equal(model(ids).logits, native)
    assert model.config.to_dict() == config
    assert fingerprint(model) == before


@pytest.mark.sampled(4)
@every_case
@pytest.mark.parametrize("used", ["before a forward", "after a forward"])
def test_a_pickled_model_is_patched_and_undoable(case: str, used: str) -> None:
    model, ids = patched(case), prompts(length=40)
    if used == "after a forward":
        model(ids)
    traveller = pickle.loads(pickle.dumps(model))
    assert torch.equal(traveller(ids).logits, model(ids).logits)
    assert torch.equal(copy.deepcopy(traveller)(ids).logits, model(ids).logits)
    assert ropescale.record(traveller) == ropescale.record(model)
    native = ropescale.unpatch(traveller)(ids).logits
    assert torch.equal(native, ropescale.unpatch(model)(ids).logits)
    assert not traveller.model._forward_pre_hooks


@pytest.mark.sampled(3)
@every_case
def test_a_saved_model_comes_back_patched_and_undoable(case: str, tmp_path: Path) -> None:
    model, ids = patched(case), prompts()
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert ropescale.record(loaded) == ropescale.record(model)
    native = ropescale.unpatch(loaded)(ids).logits
    assert torch.equal(native, copy.deepcopy(unpatched()).to(native.dtype)(ids).logits)


STRANGER = """
import sys
from transformers import AutoModelForCausalLM
if sys.argv[2] == "with":
    import ropescale.families
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
else:
    print("loaded")
"""


@pytest.mark.slow  # seconds, most of them for processes that load anew
@pytest.mark.parametrize("known", ["with", "without"])
def test_loading_without_ropescale_is_never_silently_wrong(known: str, tmp_path: Path) -> None:
    patched("dynamic_yarn").save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", STRANGER, str(tmp_path), known], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if known == "without":
        assert done.stdout.strip() == "KeyError 'ropescale'"
    else:
        assert done.stdout.strip() == (
            "CheckpointError llama: a checkpoint saved with a method that acts in attention must be loaded by "
            "ropescale, got method 'dynamic_yarn'; call ropescale.load(path)"
        )


def test_another_attention_function_is_refused_while_patched() -> None:
    model = patched("self_extend")
    model.set_attn_implementation("sdpa")
    with pytest.raises(RopescaleError) as refusal:
        model(prompts())
    assert str(refusal.value) == (
        "attention: must stay 'ropescale' while self_extend is patched in, got 'sdpa'; call "
        "ropescale.unpatch(model) before set_attn_implementation"
    )


def test_composing_over_a_late_method_is_refused(tmp_path: Path) -> None:
    patched("dynamic_yarn").save_pretrained(tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path)
    with pytest.raises(AlreadyScaledError) as refusal:
        ropescale.read_geometry(config, existing="compose")
    assert str(refusal.value) == (
        "llama: a base must be a fixed spectrum, got a ropescale record of 'dynamic_yarn', which acts in attention; "
        'pass existing="replace"'
    )
    assert ropescale.read_geometry(config, existing="replace").original_length == ORIGINAL


@pytest.mark.parametrize(
    ("name", "target"),
    [("dynamic_yarn", 2**20), ("self_extend", (32 - 16) * 8 + 16), ("string", 32), ("rerope", 2**20)],
)
def test_the_maximum_without_a_factor_is_what_the_method_reaches(name: str, target: int) -> None:
    assert ropescale.patch(llama(), name).config.max_position_embeddings == target
    assert ropescale.patch(llama(), name, factor=4).config.max_position_embeddings == 128
