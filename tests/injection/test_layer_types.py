"""Patches where layer types differ, and what the record says of them."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from families import (
    NESTED,
    config_of,
    family,
    inv_freq_of,
    logits,
    model_of,
    rope_of,
)
from patches import YARN

import ropescale
from ropescale.errors import RopescaleError

# expected of every family with sliding windows, and checked on its own below
pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "cwm"])
def test_one_rotary_for_sliding_and_full_layers_is_warned_about(name: str) -> None:
    model = family(name)
    with pytest.warns(UserWarning, match=f"^{name}: one rotary module serves sliding-window and full-attention"):
        ropescale.patch(model, "yarn", factor=4)


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("layers", ["all", "global"])
def test_layer_types_with_rotations_of_their_own(name: str, layers: str, tmp_path: Path) -> None:
    """Only layers that read the whole context are rescaled, unless all are asked for."""
    model = family(name)
    before = logits(model)
    buffers = {one: tensor.clone() for one, tensor in model.named_buffers() if one.endswith("inv_freq")}
    rope = copy.deepcopy(model.config.rope_parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ropescale.patch(model, "yarn", factor=4, layers=layers)
    for one, tensor in model.named_buffers():
        if one.endswith("inv_freq"):
            assert torch.equal(tensor, buffers[one]) == (layers == "global" and "sliding_attention" in one), one
    assert rope_of(model.config)["rope_type"] == "yarn"
    sliding = model.config.rope_parameters["sliding_attention"]
    if layers == "global":
        assert sliding == rope["sliding_attention"]
    else:
        assert (sliding["rope_type"], sliding["rope_theta"]) == ("yarn", 1000.0)
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    stated = copy.deepcopy(model.config)
    del stated.ropescale
    assert torch.equal(logits(model_of(stated)), after)
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(logits(loaded), after)
    assert ropescale.record(loaded) == ropescale.record(model)
    for one in (model, loaded):
        assert torch.equal(logits(ropescale.unpatch(one)), before)
    assert model.config.rope_parameters == loaded.config.rope_parameters == rope
    assert all(torch.equal(tensor, buffers[one]) for one, tensor in model.named_buffers() if one in buffers)


def test_layers_all_and_global_differ() -> None:
    model = family("olmo3")
    found = []
    for layers in ("all", "global"):
        with ropescale.patched(model, "linear", factor=4, layers=layers):
            found.append(logits(model))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_what_transformers_does_not_read_by_layer_type_is_stated_pair_by_pair() -> None:
    """It looks for yarn's truncate beside the layer types."""
    model = ropescale.patch(family("olmo3"), "yarn", factor=4, truncate=False)
    assert rope_of(model.config)["rope_type"] == "longrope"
    config = copy.deepcopy(model.config)
    del config.ropescale
    assert (logits(model_of(config)) - logits(model)).abs().max() < 1e-5


def test_a_layer_type_that_is_scaled_already_is_replaced_and_composed() -> None:
    fresh = ropescale.patch(family("olmo3"), "ntk", factor=8)
    plain = family("olmo3").config.rope_parameters
    rope = {**plain, "full_attention": dict(YARN)}
    scaled = model_of(config_of("olmo3", rope_parameters=rope, max_position_embeddings=256))
    before, today = logits(scaled), inv_freq_of(scaled).clone()
    with pytest.raises(RopescaleError, match="already scaled, got rope_type 'yarn'"):
        ropescale.patch(scaled, "ntk", factor=8)
    ropescale.patch(scaled, "ntk", factor=8, existing="replace")
    assert torch.equal(logits(scaled), logits(fresh))
    reloaded = model_of(copy.deepcopy(scaled.config))
    ropescale.patch(reloaded, "ntk", factor=8, existing="replace")
    assert torch.equal(logits(reloaded), logits(fresh))
    ropescale.unpatch(scaled)
    ropescale.patch(scaled, "linear", factor=2, existing="compose")
    assert torch.allclose(inv_freq_of(scaled), today / 2, rtol=2e-7, atol=0)
    assert torch.equal(logits(ropescale.unpatch(scaled)), before)


def test_a_model_of_local_layers_alone_must_be_told_apart() -> None:
    model = model_of(config_of("olmo3", layer_types=["sliding_attention"] * 2))
    with pytest.raises(RopescaleError) as refusal:
        ropescale.patch(model, "yarn", factor=4)
    assert str(refusal.value) == (
        "layers: must be 'all' for a model without a rotation in full_attention layers, got 'global' for one of "
        "sliding_attention; raise the limit alone: method 'unscaled', layers 'all'"
    )
    before = logits(model)
    ropescale.patch(model, "yarn", factor=4, layers="all")
    assert (logits(model) - before).abs().max() > 1e-3


def test_no_warning_where_every_layer_is_full() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ropescale.patch(family("llama"), "yarn", factor=4)


@pytest.mark.parametrize(
    ("arguments", "length", "source", "target"),
    [
        ({"factor": 4}, 64, "max_position_embeddings", 256),
        ({"target_length": 200}, 64, "max_position_embeddings", 200),
        ({"factor": 3.125, "target_length": 200}, 64, "max_position_embeddings", 200),
        ({"factor": 2, "original_length": 32}, 32, "argument", 64),
        ({"factor": 1}, 64, "max_position_embeddings", 64),
    ],
)
def test_record_says_what_was_done(arguments: dict, length: int, source: str, target: int) -> None:
    model = ropescale.patch(family("llama"), "yarn", **arguments)
    record = ropescale.record(model)
    assert (record.method, record.original_length, record.original_length_source) == ("yarn", length, source)
    assert record.target_length == target == model.config.max_position_embeddings
    assert record.knobs["factor"] == target / length
    assert record.to_dict() == model.config.ropescale
    assert set(record.versions) == {"ropescale", "torch", "transformers"}


def test_factor_one_leaves_the_logits_as_they_are() -> None:
    model = family("qwen3")
    before = logits(model)
    ropescale.patch(model, "yarn", factor=1)
    assert torch.equal(logits(model), before)


def test_top_level_original_length_is_read_and_written() -> None:
    model = model_of(config_of("phi3", original_max_position_embeddings=32))
    ropescale.patch(model, "yarn", factor=4)
    assert ropescale.record(model).original_length_source == "original_max_position_embeddings"
    assert model.config.max_position_embeddings == 128
    ropescale.unpatch(model)
    ropescale.patch(model, "yarn", factor=4, original_length=16)
    assert model.config.original_max_position_embeddings == 16
    ropescale.unpatch(model)
    assert model.config.original_max_position_embeddings == 32
