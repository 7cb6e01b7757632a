"""ropescale.diagnose of a loaded model: what happens to one after loading is found."""

import math
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


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention_that_is_not_as_sharp_as_its_config_says_is_found(name: str) -> None:
    rope = {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}
    scaled = config_of(name, rope_parameters=rope, max_position_embeddings=256)
    model = AutoModelForCausalLM.from_config(scaled)
    layer = model.model.layers[1].self_attn
    plain = layer.qk_head_dim**-0.5
    sharp = plain * (0.07 * math.log(4) + 1) ** 2
    unread = layer.scaling == pytest.approx(plain)  # as early versions of Transformers build some of them
    said = [str(one) for one in ropescale.diagnose(model)]
    assert len(said) == unread
    assert "take a newer transformers" in "".join(said) or layer.scaling == pytest.approx(sharp)
    for each in model.model.layers:
        each.self_attn.scaling = sharp
    assert ropescale.diagnose(model) == []
    layer.scaling = 1.01 * sharp
    (found,) = ropescale.diagnose(model)
    assert (found.check, found.where) == ("softmax-scale", "model.layers.1.self_attn.scaling")
    assert FORM.fullmatch(str(found))


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
