"""Scales of the softmax, pairs without rotation, and checkpoints that are scaled already."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    NATIVE_ONLY,
    config_of,
    family,
    inv_freq_of,
    logits,
    model_of,
)
from patches import YARN, patched_with, rotary_of

import ropescale
from ropescale.doctor.diagnosis import diagnose
from ropescale.errors import RopescaleError

# expected of every family with sliding windows, and checked on its own below
pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")


PROPORTIONAL = {
    "full_attention": {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}


@pytest.mark.parametrize("name", NATIVE_ONLY)
def test_a_config_that_cannot_state_every_spectrum_says_so(name: str) -> None:
    """Transformers reads one head size when it checks longrope, where these have one for each layer type."""
    model = family(name)
    before = logits(model)
    for method in ("longrope", "power", "proportional", "truncated"):
        with pytest.raises(RopescaleError, match=f"does not save longrope in such a config, got {method}; use linear"):
            patched_with(model, method)
    assert torch.equal(logits(model), before)


CASES = [("gemma4_text", "linear"), *(("lfm3", method) for method in ("by_parts", "linear", "llama3", "yarn"))]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_pairs_that_were_pretrained_without_rotation_stay_without(name: str, method: str, tmp_path: Path) -> None:
    """Gemma 4 and LFM3 as published: nothing is scaled, and half of the pairs carry no position."""
    model = model_of(config_of(name, rope_parameters=copy.deepcopy(PROPORTIONAL)))
    geometry = ropescale.read_geometry(model.config)
    still = inv_freq_of(model) == 0
    assert still.sum() == geometry.pairs // 2
    before = logits(model)
    ropescale.patch(model, method, factor=4)
    assert (inv_freq_of(model)[still] == 0).all()
    assert (inv_freq_of(model)[~still] > 0).all()
    assert (logits(model) - before).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(ropescale.load(tmp_path)), logits(model))
    stranger = type(model).from_pretrained(tmp_path)
    assert (logits(stranger) - logits(model)).abs().max() < 1e-5
    assert torch.equal(logits(ropescale.unpatch(model)), before)
    assert model.config.rope_parameters == PROPORTIONAL


def test_what_no_method_changes_stays_in_the_config() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2], "partial_rotary_factor": 0.5}
    model = model_of(config_of("qwen3_5_text", rope_parameters=dict(rope)))
    for method in ("yarn", "power", "self_extend"):
        with ropescale.patched(model, method, factor=4):
            assert model.config.rope_parameters["mrope_section"] == [3, 3, 2]
            assert model.config.rope_parameters["partial_rotary_factor"] == 0.5
    assert model.config.rope_parameters == rope


DEEPSEEK = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}


LATENT_ATTENTION = [
    *("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"),
    *("hy_v4", "longcat_flash", "minicpm3", "youtu"),
]


@pytest.mark.parametrize("name", LATENT_ATTENTION)
def test_a_scale_that_belongs_into_the_softmax_is_put_there(name: str, tmp_path: Path) -> None:
    """Transformers multiplies mscale_all_dim into every layer of latent attention when it builds the model."""
    model, plain = family(name), family(name)
    before = logits(model)
    ropescale.patch(model, "yarn", factor=4, mscale=0.707, mscale_all_dim=0.707)
    config = copy.deepcopy(model.config)
    del config.ropescale
    native = model_of(config)
    scalings = [[one.scaling for one in each.modules() if hasattr(one, "qk_head_dim")] for each in (model, native)]
    assert scalings[0] == scalings[1]
    assert (logits(native) - logits(model)).abs().max() <= 1e-6
    assert (logits(model) - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    for one in (model, loaded):
        assert torch.equal(logits(ropescale.unpatch(one)), before)
        assert [m.scaling for m in one.modules() if hasattr(m, "qk_head_dim")] == [
            m.scaling for m in plain.modules() if hasattr(m, "qk_head_dim")
        ]


def test_a_scaling_that_is_built_into_the_softmax_is_taken_out_and_put_back() -> None:
    """DeepSeek V3 as published."""
    model = model_of(config_of("deepseek_v3", rope_parameters=dict(DEEPSEEK), max_position_embeddings=256))
    before, scaling = logits(model), model.model.layers[0].self_attn.scaling
    assert scaling > 1.1 * family("deepseek_v3").model.layers[0].self_attn.scaling
    ropescale.patch(model, "linear", factor=2, existing="replace")
    assert torch.equal(logits(model), logits(ropescale.patch(family("deepseek_v3"), "linear", factor=2)))
    ropescale.unpatch(model)
    assert model.model.layers[0].self_attn.scaling == scaling
    assert torch.equal(logits(model), before)
    ropescale.patch(model, "linear", factor=2, existing="compose")
    assert model.model.layers[0].self_attn.scaling == pytest.approx(scaling)
    ropescale.unpatch(model)
    assert model.model.layers[0].self_attn.scaling == scaling
    model.model.layers[1].self_attn.scaling *= 2
    with pytest.raises(RopescaleError, match=r"model\.layers\.1\.self_attn\.scaling must be what its config says"):
        ropescale.patch(model, "linear", factor=2, existing="replace")


@pytest.mark.parametrize(
    ("existing", "knobs", "expected"),
    [
        ("compose", {}, (1 + 0.0707 * math.log(4)) * (1 + 0.1 * math.log(4))),  # today's, and the method's own
        ("replace", {}, 1 + 0.1 * math.log(4)),
        ("replace", {"ramp": "turns"}, 1 + 0.1 * math.log(4)),  # which Transformers has no type for
        ("replace", {"resonance": True}, 1 + 0.1 * math.log(4)),
    ],
)
def test_a_softmax_scale_is_stated_beside_every_type(
    existing: str, knobs: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    model = model_of(config_of("deepseek_v3", rope_parameters=dict(DEEPSEEK), max_position_embeddings=256))
    ropescale.patch(model, "yarn", factor=4, mscale=1.0, mscale_all_dim=1.0, existing=existing, **knobs)
    plain = model.model.layers[0].self_attn.qk_head_dim ** -0.5
    assert model.model.layers[0].self_attn.scaling == pytest.approx(plain * expected**2)
    model.save_pretrained(tmp_path)
    for one in (ropescale.load(tmp_path), type(model).from_pretrained(tmp_path)):
        assert (logits(one) - logits(model)).abs().max() <= 1e-5
    assert diagnose(tmp_path) == []


def test_a_base_with_a_softmax_scale_is_read_late() -> None:
    model = model_of(config_of("deepseek_v3", rope_parameters=dict(DEEPSEEK), max_position_embeddings=256))
    before = logits(model)  # of fewer tokens than there are before the first group
    ropescale.patch(model, "self_extend", existing="compose", window=200)
    assert (logits(model) - before).abs().max() <= 1e-4
    assert torch.equal(logits(ropescale.unpatch(model)), before)


def test_replacing_an_existing_scaling_starts_from_the_original() -> None:
    fresh = ropescale.patch(family("llama"), "ntk", factor=8)
    scaled = model_of(config_of("llama", rope_parameters=dict(YARN), max_position_embeddings=256))
    before = logits(scaled)
    ropescale.patch(scaled, "ntk", factor=8, existing="replace")
    assert torch.equal(logits(scaled), logits(fresh))
    assert ropescale.record(scaled).original_length == 64
    ropescale.unpatch(scaled)
    assert torch.equal(logits(scaled), before)


def test_composing_scales_what_is_there_from_todays_maximum() -> None:
    scaled = model_of(config_of("llama", rope_parameters=dict(YARN), max_position_embeddings=256))
    today, attention = rotary_of(scaled).inv_freq.clone(), rotary_of(scaled).attention_scaling
    ropescale.patch(scaled, "linear", factor=2, existing="compose")
    # stated pair by pair in the saved config, which can cost the last bit
    assert torch.allclose(rotary_of(scaled).inv_freq, today / 2, rtol=2e-7, atol=0)
    assert rotary_of(scaled).attention_scaling == attention
    assert scaled.config.max_position_embeddings == 512
    ropescale.unpatch(scaled)
    assert torch.equal(rotary_of(scaled).inv_freq, today)


def test_replacing_a_composed_patch_starts_from_the_pretrained_length() -> None:
    fresh = ropescale.patch(family("llama"), "ntk", factor=8)
    scaled = model_of(config_of("llama", rope_parameters=dict(YARN), max_position_embeddings=256))
    ropescale.patch(scaled, "linear", factor=2, existing="compose")
    reloaded = model_of(copy.deepcopy(scaled.config))
    ropescale.patch(reloaded, "ntk", factor=8, existing="replace")
    assert ropescale.record(reloaded).original_length == 64
    assert torch.equal(logits(reloaded), logits(fresh))


@pytest.mark.parametrize("existing", ["compose", "replace"])
def test_a_refused_call_leaves_an_incomplete_config_as_it_is(existing: str) -> None:
    """Transformers' functions write what is missing into the config they compute from."""
    model = family("llama")
    model.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    with pytest.raises(RopescaleError):
        ropescale.patch(model, "linear", factor=4, existing=existing)
    assert model.config.rope_parameters == {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


def test_a_natively_longrope_module_keeps_the_patched_frequencies() -> None:
    """Transformers rewrites the buffer of such a module at every call, so its type has to change with the patch."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    }
    model = model_of(config_of("llama", rope_parameters=rope, max_position_embeddings=256))
    before = logits(model)
    ropescale.patch(model, "yarn", factor=4, existing="replace")
    assert torch.equal(logits(model), logits(ropescale.patch(family("llama"), "yarn", factor=4)))
    ropescale.unpatch(model)
    assert torch.equal(logits(model), before)
