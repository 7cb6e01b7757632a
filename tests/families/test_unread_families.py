"""Entries that a config states, told whatever else is found; and configs of every family, clean and saved again."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from families import ALONE, config_of, family, in_turn, model_of
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from unread_entries import LLAMA, YARN, measured, series, written

import ropescale
from ropescale.families.parts import parts_of, text_of
from ropescale.families.today import todays_spectrum

EVERY = [name for name in ALONE if name in CONFIG_MAPPING]

# What hides nothing


def test_every_check_runs_whatever_another_one_finds(tmp_path: Path) -> None:
    rope = {**YARN, "type": "yarn", "attention_factor": 0.0, "attn_factor": 2.0}
    values = {**LLAMA, "max_position_embeddings": 8192, "rope_scaling": rope, "model_max_length": 65536}
    found = ropescale.diagnose(written(tmp_path, values))
    assert sorted(one.check for one in found) == ["bad-number", "double-scaling", "ignored-key", "ignored-key"]


def test_a_refused_entry_beside_the_rotation_keeps_its_reason(tmp_path: Path) -> None:
    values = {**LLAMA, "num_attention_heads": "4"}
    folder = written(tmp_path, values)
    # before it checked types, Transformers came upon it in its arithmetic
    reason = "'num_attention_heads' expected int, got str|unsupported operand type"
    with pytest.raises(ropescale.errors.CheckpointError, match=reason):
        ropescale.diagnose(folder)
    found = ropescale.diagnose(written(folder, {**values, "rope_scaling": {"type": "linear"}}))
    assert [one.check for one in found] == ["missing-key", "config"]
    assert re.search(reason, found[1].rule)


def test_a_config_edited_after_loading_is_told_with_its_length() -> None:
    model = family("llama")
    model.config.rope_parameters = {**YARN, "rope_type": "yarn", "rope_theta": 1e4}
    before = model.model.rotary_emb.inv_freq.clone()
    found = [one.check for one in ropescale.diagnose(model)]
    assert found == ["maximum", "config-edited", "config-edited"]  # too short, frequencies, attention factor
    assert torch.equal(model.model.rotary_emb.inv_freq, before)  # which is what the second and third say


@pytest.mark.parametrize("kept", [True, False])
def test_of_two_scalings_the_old_name_counts_and_theta_is_lost_unless_it_is_there(kept: bool, tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0, **({"rope_theta": 1e6} if kept else {})}
    values = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": scaling}
    folder = written(tmp_path, values)
    torch.testing.assert_close(measured(folder)[0], series(1e6 if kept else 1e4, factor=4), rtol=1e-5, atol=0)
    assert [one.check for one in ropescale.diagnose(folder)] == ["two-scalings" if kept else "theta-lost"]
    written(folder, {**LLAMA, "rope_parameters": {**scaling, "rope_theta": 1e6}})
    assert ropescale.diagnose(folder) == []
    torch.testing.assert_close(measured(folder)[0], series(1e6, factor=4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["max_position_embeddings", "original_max_position_embeddings"])
def test_a_length_that_is_written_as_a_float_is_that_length(name: str, tmp_path: Path) -> None:
    values = {**LLAMA, "rope_scaling": dict(YARN)}
    place = values if name in values else values["rope_scaling"]
    place[name] = float(place[name])
    folder = written(tmp_path, values)
    (found,) = ropescale.diagnose(folder)  # and nothing about lengths that do not agree
    assert found.remedy == f"write {place[name]:.0f}"
    place[name] = int(place[name])
    assert ropescale.diagnose(written(folder, values)) == []


def test_an_original_length_that_was_filled_in_is_not_doubled(tmp_path: Path) -> None:
    """On disk nothing is stated; in the loaded model Transformers has filled in the maximum, extended or not."""
    folder = written(tmp_path, {**LLAMA, "rope_scaling": {"type": "yarn", "factor": 4.0}})
    (found,) = ropescale.diagnose(folder)
    assert found.check == "original-length"
    assert found.remedy.endswith("4096 if that was left as it was, 1024 if the factor is in it")
    (live,) = ropescale.diagnose(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)))
    assert live.remedy.startswith("write 16384, or original_max_position_embeddings 1024")
    for cure in ({"max_position_embeddings": 16384, "original": 4096}, {"original": 1024}):
        rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": cure.pop("original")}
        assert ropescale.diagnose(written(folder, {**LLAMA, **cure, "rope_scaling": rope})) == []


# Every family


def agrees(config: PreTrainedConfig) -> bool:
    """Whether this Transformers rotates by what the config says, as measured on a model."""
    text = text_of(config)
    if not parts_of(text)[0].label and any(isinstance(one, dict) for one in text.rope_parameters.values()):
        return False  # one rotation for all layers, where the config states one for each type
    buffers = dict(model_of(config).named_buffers())
    for part in parts_of(text):
        expected = todays_spectrum(part)[0]
        held = [one for name, one in buffers.items() if name.endswith(f".{part.prefix}inv_freq")]
        if not any(one.shape == expected.shape and torch.allclose(one, expected, rtol=1e-5) for one in held):
            return False
    return True


@pytest.mark.parametrize("name", EVERY)
def test_a_config_of_every_family_is_clean_where_transformers_rotates_by_it(name: str, tmp_path: Path) -> None:
    """Old versions turn whole heads in families where later ones turn a share, or know one rotation for all layers."""
    config_of(name).save_pretrained(tmp_path)
    found = ropescale.diagnose(tmp_path)
    assert (found == []) == agrees(config_of(name)), [str(one) for one in found]


def test_a_share_stated_by_its_size_is_found_where_a_version_does_not_read_it(tmp_path: Path) -> None:
    values = {**LLAMA, "model_type": "minimax_m2", "head_dim": 16, "rotary_dim": 8}
    folder = written(tmp_path, values)
    inv_freq = measured(folder)[0]
    found = [one.where for one in ropescale.diagnose(folder)]
    assert (found, len(inv_freq)) in (([], 4), (["rotary_dim"], 8))


# tests/house/test_bars.py has every family saved, loaded and examined
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", in_turn(EVERY, 0, 3))
def test_what_is_patched_saved_and_loaded_again_is_clean(name: str, tmp_path: Path) -> None:
    if not agrees(config_of(name)):
        return  # which the test above tells of
    model = ropescale.patch(model_of(config_of(name)), "linear", factor=4)
    assert ropescale.diagnose(model) == []
    model.save_pretrained(tmp_path)
    assert [str(one) for one in ropescale.diagnose(tmp_path)] == []
    again = ropescale.load(tmp_path)
    assert ropescale.diagnose(again) == []
    assert ropescale.diagnose(ropescale.unpatch(again)) == []


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *itertools.product(("llama", "deepseek_v3", "glm", "phi3", "phimoe"), ("yarn", "ntk")),
        *itertools.product(("llama", "glm"), ("dynamic_ntk", "rerope")),
    ],
)
def test_other_methods_saved_and_loaded_again_are_clean(name: str, method: str, tmp_path: Path) -> None:
    model = ropescale.patch(model_of(config_of(name)), method, factor=4)
    assert ropescale.diagnose(model) == []
    model.save_pretrained(tmp_path)
    assert [str(one) for one in ropescale.diagnose(tmp_path)] == []
    assert ropescale.diagnose(ropescale.load(tmp_path)) == []
