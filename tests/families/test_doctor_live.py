"""ropescale.diagnose of a loaded model: what happens to one after loading is found."""

import warnings
from pathlib import Path

import pytest
import torch
from families import NAMES, config_of, family, logits
from faults import FORM, YARN, checks
from torch import nn
from transformers import AutoModelForCausalLM

import ropescale


def cast(model: nn.Module) -> None:
    model.to(torch.bfloat16)


def rounded(model: nn.Module) -> None:
    model.half().float()


def emptied(model: nn.Module) -> None:
    for name in ("inv_freq", "original_inv_freq"):
        getattr(model.model.rotary_emb, name).fill_(float("nan"))


def edited_after_loading(model: nn.Module) -> None:
    model.config.rope_parameters = dict(YARN)
    model.config.max_position_embeddings = 256


def factor_lost(model: nn.Module) -> None:
    model.model.rotary_emb.attention_scaling = 1.3


def theta_dropped(model: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model.config.rope_scaling = {"rope_type": "linear", "factor": 4.0}


LIVE = {
    "cast after loading": (cast, "low-precision"),
    "cast and cast back": (rounded, "low-precision"),
    "uninitialised frequencies": (emptied, "uninitialised"),
    "a config edited after loading": (edited_after_loading, "config-edited"),
    "another attention factor": (factor_lost, "config-edited"),
    "rope_scaling set after loading": (theta_dropped, "theta-lost"),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_fault_of_a_loaded_model_is_found_and_loading_again_cures_it(name: str, plain: Path) -> None:
    spoil, check = LIVE[name]
    model = AutoModelForCausalLM.from_pretrained(plain)
    assert ropescale.diagnose(model) == []
    spoil(model)
    found = ropescale.diagnose(model)
    assert checks(found) == {check}
    assert [str(one) for one in found if not FORM.fullmatch(str(one))] == []
    assert ropescale.diagnose(AutoModelForCausalLM.from_pretrained(plain, dtype=model.dtype)) == []


def test_a_model_without_weights_is_uninitialised() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("llama"))
    assert checks(ropescale.diagnose(model)) == {"uninitialised"}


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn", "power", "rerope", "dynamic_ntk"])
@pytest.mark.parametrize("name", [name for name in ("llama", "olmo3") if name in NAMES])
def test_a_patched_model_is_clean(method: str, name: str) -> None:
    model = family(name)
    before = logits(model)
    with ropescale.patched(model, method, factor=4):
        assert ropescale.diagnose(model) == []
        if name == "llama":  # local layers of olmo3 keep buffers of their own, which the cast does round
            assert ropescale.diagnose(model.to(torch.bfloat16).float()) == []
    assert ropescale.diagnose(family(name)) == []
    assert torch.equal(logits(family(name)), before)
