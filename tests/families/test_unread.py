"""What published configs state and Transformers does not read: each is found, and its remedy is what the entry meant.

What Transformers does is measured on a model built from the config; what the entry means is computed here.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from unread_entries import LLAMA, QWEN3, SMALL, YARN, Entry, measured, series, theta, written, yarn

import ropescale

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


ROOT_OF_4 = 1 / (0.1 * math.log(4) + 1)  # makes the product 1


def length(name: str) -> Entry:
    return Entry(
        config={**LLAMA, name: 16384},
        where=name,
        says="write max_position_embeddings 16384",
        cure={"max_position_embeddings": 16384},
        lengths=(4096, 16384),
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
