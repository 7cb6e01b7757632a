"""What published configs state and Transformers does not read: each is found, and its remedy is what the entry meant.

What Transformers does is measured on a model built from the config; what the entry means is computed here.
"""

import itertools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of, family, model_of
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import ropescale
from ropescale.families.catalogue import PATCHED
from ropescale.families.parts import parts_of, text_of
from ropescale.families.today import todays_spectrum

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 4096,
}
LLAMA = {**SMALL, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
QWEN3 = {**SMALL, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "rope_theta": 1e6}
DBRX = {
    "model_type": "dbrx",
    "architectures": ["DbrxForCausalLM"],
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 32768,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 500000, "clip_qkv": 8},
    "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 2, "moe_top_k": 1},
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
ROOT_OF_4 = 1 / (0.1 * math.log(4) + 1)  # makes the product 1


def written(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({name: one for name, one in values.items() if one is not None}))
    return folder


def measured(folder: Path) -> tuple[torch.Tensor, float, int]:
    """The frequencies, the attention factor and the length of the model that Transformers builds."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    (rotary,) = [one for _, one in model.named_modules() if hasattr(one, "inv_freq")]
    return rotary.inv_freq, rotary.attention_scaling, text_of(model.config).max_position_embeddings


def series(theta: float = 1e4, *, factor: float = 1.0, elements: int = 16) -> torch.Tensor:
    return torch.tensor([theta ** (-2 * i / elements) / factor for i in range(elements // 2)])


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry that is not read: what Transformers does all the same, and what it does after the remedy."""

    config: dict[str, Any]
    where: str
    says: str  # what the remedy must name
    cure: dict[str, Any]
    today: torch.Tensor = field(default_factory=series)
    meant: torch.Tensor = field(default_factory=series)
    factors: tuple[float, float] = (1.0, 1.0)  # attention factors, today and meant
    lengths: tuple[int, int] = (4096, 4096)


def theta(base: dict[str, Any], name: str) -> Entry:
    return Entry(
        config={**base, name: 50000},
        where=name,
        says="write rope_theta 50000",
        cure={"rope_theta": 50000, name: None},
        meant=series(5e4),
    )


def length(name: str) -> Entry:
    return Entry(
        config={**LLAMA, name: 16384},
        where=name,
        says="write max_position_embeddings 16384",
        cure={"max_position_embeddings": 16384},
        lengths=(4096, 16384),
    )


def yarn(block: dict[str, Any], where: str, factors: tuple[float, float], says: str, cure: dict[str, Any]) -> Entry:
    # yarn's own ramp, which no attention factor changes
    ramp = ropescale.get_method("yarn")(factor=4)
    slowed = ramp.spectrum(ropescale.Geometry(rotary_dim=16, theta=1e6, original_length=1024)).inv_freq
    scaling = {name: value for name, value in {**YARN, **block, **cure}.items() if value is not None}
    return Entry(
        config={**QWEN3, "rope_scaling": {**YARN, **block}},
        where=f"rope_scaling.{where}",
        says=says,
        cure={"rope_scaling": scaling},
        today=slowed,
        meant=slowed,
        factors=factors,
    )


OWN = 0.1 * math.log(4) + 1
ENTRIES = {
    "attn_factor, so that the product is 1": yarn(
        {"attn_factor": ROOT_OF_4},
        "attn_factor",
        (OWN, 1.0),
        "write attention_factor 1.0 ",
        {"attn_factor": None, "attention_factor": 1.0},
    ),
    "attn_factor of 2": yarn(
        {"attn_factor": 2},
        "attn_factor",
        (OWN, 2 * OWN),
        f"write attention_factor {2 * OWN:.10g}",
        {"attn_factor": None, "attention_factor": 2 * OWN},
    ),
    "attn_factor beside mscale": yarn(
        {"attn_factor": 2, "mscale": 2.0, "mscale_all_dim": 1.0},
        "attn_factor",
        ((0.2 * math.log(4) + 1) / OWN, 2 * (0.2 * math.log(4) + 1) / OWN),
        "write attention_factor 2.24",
        {"attn_factor": None, "attention_factor": 2 * (0.2 * math.log(4) + 1) / OWN},
    ),
    "mscale alone": yarn(
        {"mscale": 2.0},
        "mscale",
        (OWN, 0.2 * math.log(4) + 1),
        f"write attention_factor {0.2 * math.log(4) + 1:.10g}",
        {"attention_factor": 0.2 * math.log(4) + 1},
    ),
    "LongChat's rope_condense_ratio": Entry(
        config={**LLAMA, "rope_condense_ratio": 8},
        where="rope_condense_ratio",
        says="write rope_type 'linear' with factor 8",
        cure={"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        meant=series(factor=8),
    ),
    "llama.cpp's rope_freq_scale": Entry(
        config={**LLAMA, "rope_freq_scale": 0.25},
        where="rope_freq_scale",
        says="write rope_type 'linear' with factor 4",
        cure={"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        meant=series(factor=4),
    ),
    "ChatGLM's rope_ratio": Entry(
        config={**LLAMA, "rope_ratio": 500},
        where="rope_ratio",
        says="write rope_theta 5e+06",
        cure={"rope_theta": 5e6, "rope_ratio": None},
        meant=series(5e6),
    ),
    "DBRX's theta": Entry(
        config=DBRX,
        where="attn_config.rope_theta",
        says="write rope_theta 500000",
        cure={"rope_theta": 500000},
        meant=series(5e5),
        lengths=(32768, 32768),
    ),
    "llama.cpp's rope_freq_base": theta(LLAMA, "rope_freq_base"),
    "GPT-NeoX's rotary_emb_base in a Llama": theta(LLAMA, "rotary_emb_base"),
    "Gemma 3's rope_local_base_freq in a Llama": theta(LLAMA, "rope_local_base_freq"),
    "rope_base": theta(LLAMA, "rope_base"),
    "Command-R's model_max_length": length("model_max_length"),
    "Vicuna's max_sequence_length": length("max_sequence_length"),
    "Baichuan's seq_length": length("seq_length"),
    "GPT-2's n_positions in a Llama": length("n_positions"),
    "rotary_pct in a Llama": Entry(
        config={**LLAMA, "rotary_pct": 0.25},
        where="rotary_pct",
        says="else remove it",
        cure={"rotary_pct": None},
    ),
    "rotary_pct in a StableLM": Entry(
        config={**LLAMA, "model_type": "stablelm", "rotary_pct": 0.5},
        where="rotary_pct",
        says="write partial_rotary_factor 0.5",
        cure={"partial_rotary_factor": 0.5},
        today=series(elements=4),
        meant=series(elements=8),
    ),
    "rotary_dim in a Llama": Entry(
        config={**LLAMA, "rotary_dim": 8},
        where="rotary_dim",
        says="else remove it",
        cure={"rotary_dim": None},
    ),
    "a share of the head in a family that turns all of it": Entry(
        config={**LLAMA, "partial_rotary_factor": 0.5},
        where="partial_rotary_factor",
        says="remove it: layers of llama turn as many elements whatever it says",
        cure={"partial_rotary_factor": None},
    ),
    "Qwen2.5-1M's dual chunks": Entry(
        config={
            **LLAMA,
            "max_position_embeddings": 16384,
            "dual_chunk_attention_config": {"chunk_size": 4096, "original_max_position_embeddings": 4096},
        },
        where="dual_chunk_attention_config",
        says="write max_position_embeddings 4096, and patch with method 'dual_chunk'",
        cure={"max_position_embeddings": 4096},
        lengths=(16384, 4096),
    ),
    "Qwen's use_dynamic_ntk": Entry(
        config={**LLAMA, "use_dynamic_ntk": True},
        where="use_dynamic_ntk",
        says="patch with method 'dynamic_ntk'",
        cure={"use_dynamic_ntk": False},
    ),
    "Qwen's use_logn_attn": Entry(
        config={**LLAMA, "use_logn_attn": True},
        where="use_logn_attn",
        says="patch with log_n=True",
        cure={"use_logn_attn": False},
    ),
    "a factor without a type": Entry(
        config={**LLAMA, "rope_scaling": {"factor": 4.0}},
        where="rope_scaling.factor",
        says="write the rope_type",
        cure={"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        meant=series(factor=4),
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_that_is_not_read_is_found_and_its_remedy_does_what_it_meant(name: str, tmp_path: Path) -> None:
    entry = ENTRIES[name]
    folder = written(tmp_path, entry.config)
    found = [one for one in ropescale.diagnose(folder) if one.where == entry.where]
    assert [one.check for one in found] == ["ignored-key"]
    assert entry.says in found[0].remedy
    for when, values in enumerate((entry.config, {**entry.config, **entry.cure})):
        inv_freq, factor, reach = measured(written(tmp_path, values))
        torch.testing.assert_close(inv_freq, (entry.today, entry.meant)[when], rtol=1e-5, atol=0)
        assert factor == pytest.approx(entry.factors[when], rel=1e-8)
        assert reach == entry.lengths[when]
    assert [str(one) for one in ropescale.diagnose(folder) if one.where == entry.where] == []


READ: dict[str, dict[str, Any]] = {
    "GPT-NeoX reads rotary_emb_base and rotary_pct": {
        **LLAMA,
        "model_type": "gpt_neox",
        "rotary_emb_base": 50000,
        "rotary_pct": 0.25,
    },
    "ModernBERT's two thetas": {
        **LLAMA,
        "model_type": "modernbert-decoder",
        "global_rope_theta": 160000.0,
        "local_rope_theta": 1e4,
        "num_hidden_layers": 3,
    },
    "DBRX's length": {**DBRX, "attn_config": {**DBRX["attn_config"], "rope_theta": 10000}},
    "a length that agrees": {**LLAMA, "max_sequence_length": 4096, "model_max_length": 4096},
    "a ratio of 1": {**LLAMA, "rope_condense_ratio": 1, "rope_ratio": 1},
    "a ratio that is stated as linear scaling": {
        **LLAMA,
        "rope_condense_ratio": 4,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "Yarn-Llama-2's finetuned": {**LLAMA, "rope_scaling": {**YARN, "finetuned": True}},
    "multipliers of 1": {**LLAMA, "rope_scaling": {**YARN, "attn_factor": 1, "extrapolation_factor": 1.0}},
    "Qwen's switches, off": {**LLAMA, "use_dynamic_ntk": False, "use_logn_attn": False},
    "Qwen2.5-1M within its original length": {
        **LLAMA,
        "dual_chunk_attention_config": {"chunk_size": 4096, "original_max_position_embeddings": 4096},
    },
    # what training programs write
    "linear, as axolotl has it": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic, as LLaMA-Factory has it": {**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "yarn, as LLaMA-Factory has it": {**LLAMA, "rope_scaling": {**YARN, "type": None, "rope_type": "yarn"}},
    "both names of the type": {**LLAMA, "rope_scaling": {**YARN, "rope_type": "yarn"}},
    "a theta inside and beside": {**LLAMA, "rope_theta": 5e5, "rope_scaling": {**YARN, "rope_theta": 5e5}},
    "HunYuan's alpha": {
        **LLAMA,
        "model_type": "hunyuan_v1_dense",
        "head_dim": 16,
        "rope_scaling": {
            "type": "dynamic",
            "alpha": 1000.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    "Kimi K2's equal bounds": {**QWEN3, "rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0}},
    "Llama 4 Scout's equal bounds": {
        **LLAMA,
        "rope_scaling": {**YARN, "type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    },
    "Gemma 3 4B, linear in the layers that read everything": {
        **LLAMA,
        "model_type": "gemma3_text",
        "head_dim": 16,
        "num_hidden_layers": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "Phi-3, by the name of before, that Transformers takes": {
        **LLAMA,
        "model_type": "phi3",
        "max_position_embeddings": 65536,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "su",
            "original_max_position_embeddings": 4096,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        },
    },
}


@pytest.mark.parametrize("name", READ)
def test_an_entry_that_is_in_force_is_left_in_peace(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, READ[name])
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))  # as Transformers loads it
    assert [str(one) for one in ropescale.diagnose(folder)] == []


def test_phi_3_as_first_published_is_not_loaded_and_the_name_of_today_cures_it(tmp_path: Path) -> None:
    rope = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    lengths = {"max_position_embeddings": 65536, "original_max_position_embeddings": 4096}
    published = {**LLAMA, **lengths, "model_type": "phi3", "rope_scaling": rope}
    folder = written(tmp_path, published)
    with pytest.raises(KeyError, match="original_max_position_embeddings"):
        AutoConfig.from_pretrained(folder)
    (found,) = ropescale.diagnose(folder)
    assert found.check == "unknown-type"
    assert found.remedy == "write 'longrope'"
    written(folder, {**published, "rope_scaling": {**rope, "type": "longrope"}})
    assert ropescale.diagnose(folder) == []
    torch.testing.assert_close(measured(folder)[0], series(), rtol=1e-5, atol=0)


def test_mrope_means_the_default_type_where_a_family_does_not_read_it(tmp_path: Path) -> None:
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    folder = written(tmp_path, {**LLAMA, "model_type": "qwen2", "rope_scaling": rope})
    with pytest.raises(KeyError, match="mrope"):
        measured(folder)
    (found,) = ropescale.diagnose(folder)
    assert found.remedy == "write 'default'"
    written(folder, {**LLAMA, "model_type": "qwen2", "rope_scaling": {**rope, "type": "default"}})
    assert ropescale.diagnose(folder) == []
    torch.testing.assert_close(measured(folder)[0], series(), rtol=1e-5, atol=0)


GRANITE = {
    "model_type": "granitemoehybrid",
    **SMALL,
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "num_local_experts": 0,
    "shared_intermediate_size": 64,
    "position_embedding_type": "nope",
}
FALCON = {**SMALL, "model_type": "falcon", "alibi": True}
LINEAR = {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize("base", [GRANITE, FALCON], ids=["Granite 4 H without positions", "Falcon with ALiBi"])
@pytest.mark.parametrize("stated", [{"rope_theta": 5e5}, {"rope_scaling": LINEAR}], ids=["theta", "scaling"])
def test_a_rotation_that_no_layer_uses_is_said(base: dict[str, Any], stated: dict[str, Any], tmp_path: Path) -> None:
    """Measured: what is stated changes no logit."""
    tokens = torch.arange(3, 35)[None]
    logits = []
    for values in (base, {**base, **stated}):
        folder = written(tmp_path, values)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
        with torch.no_grad():
            logits.append(model(tokens).logits)
        found = [one.check for one in ropescale.diagnose(folder)]
        assert found == (["no-rotation"] if values is not base else [])
    assert torch.equal(*logits)
    model.save_pretrained(tmp_path / "saved")
    if "rope_theta" in stated:  # which Transformers writes into every config from then on
        assert ropescale.diagnose(tmp_path / "saved") == []


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


@pytest.mark.parametrize("name", sorted(PATCHED.intersection(CONFIG_MAPPING)))
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


@pytest.mark.parametrize("name", sorted(PATCHED.intersection(CONFIG_MAPPING)))
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
