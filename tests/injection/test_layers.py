"""Which layers rotate and which read the whole context: what a patch may change, and what it says about that."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of, logits, model_of
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel

import ropescale
from ropescale.doctor.diagnosis import diagnose
from ropescale.errors import InvalidArgumentError, RopescaleError, UnsupportedModelError
from ropescale.explain.inspection import inspected
from ropescale.families.catalogue import ROWS
from ropescale.families.layers import layers_of
from ropescale.methods import FixedMethod

# those that this version of Transformers has
LOCAL = sorted(row.model_type for row in ROWS if row.windows_alone and row.model_type in CONFIG_MAPPING)
BOTH = ["sliding_attention", "full_attention"]
# Configs under which no layer has positions from a rotation
WITHOUT: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon with alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "granite without positions": ("granitemoehybrid", {"position_embedding_type": "nope"}),
    "zamba2 without use_mem_rope": ("zamba2", {"use_mem_rope": False}),
    "smollm3 without rope": ("smollm3", {"no_rope_layers": [0, 0]}),
    "llama4 without rope": ("llama4_text", {"no_rope_layers": [0, 0]}),
    **{f"{name} of full layers": (name, {"layer_types": BOTH[1:] * 2, "sliding_window": 48}) for name in LOCAL},
}


def said(model: PreTrainedModel, method: str, **arguments: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ropescale.patch(model, method, factor=4, **arguments)
    return " ".join(str(one.message) for one in caught if issubclass(one.category, UserWarning))


@pytest.mark.parametrize("case", sorted(WITHOUT))
def test_a_model_without_rotation_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, facts = WITHOUT[case]
    config = config_of(name, **facts)
    model = model_of(config)
    for method in ("linear", "self_extend"):
        with pytest.raises(UnsupportedModelError, match=r"must rotate for .* to act, .*; scale nothing and"):
            ropescale.patch(model, method, factor=4, layers="all" if method == "linear" else "global")
    assert ropescale.record(model) is None
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match="must rotate for linear to act"):
        ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "target", "linear", factor=4)
    assert not (tmp_path / "target").exists()


def moved_by_a_rotation(model: PreTrainedModel) -> bool:
    """Whether frequencies that are none change what a model answers: what no reading of its config can say."""
    before = logits(model, 40)
    kept = {
        module: module.inv_freq.clone()
        for module in model.modules()
        if isinstance(getattr(module, "inv_freq", 0), torch.Tensor)
    }
    for module in kept:
        module.inv_freq.zero_()
    after = logits(model, 40)
    for module, inv_freq in kept.items():
        module.inv_freq.copy_(inv_freq)
    return bool((before - after).abs().max() > 1e-5)


@pytest.mark.parametrize("name", [*LOCAL, "mistral", "gemma2", "smollm3", "gpt_oss", "cwm"])
def test_which_layers_rotate_is_what_their_answers_say(name: str) -> None:
    for types in (BOTH, BOTH[1:] * 2, BOTH[:1] * 2):
        config = config_of(name, layer_types=types, sliding_window=48)
        assert any(layer.rotates for layer in layers_of(config)) == moved_by_a_rotation(model_of(config)), types


@pytest.mark.parametrize("name", LOCAL)
def test_where_only_windows_rotate_a_patch_of_global_layers_is_refused(name: str) -> None:
    model = model_of(config_of(name, layer_types=BOTH, sliding_window=48))
    before = logits(model)
    with pytest.raises(InvalidArgumentError, match=r'read the whole context do not rotate.*method "unscaled"'):
        ropescale.patch(model, "yarn", factor=4)
    warning = said(model, "linear", layers="all")
    assert "only layers of a window of 48 tokens rotate" in warning
    assert "full-attention layers" not in warning
    assert not torch.equal(logits(model), before)
    ropescale.unpatch(model)
    assert said(model, "unscaled") == ""
    assert torch.equal(logits(model), before)
    assert model.config.max_position_embeddings == 256


def test_what_is_said_about_windows_is_so() -> None:
    mixed = "one rotary module serves sliding-window and full-attention layers"
    assert mixed in said(model_of(config_of("gemma2", sliding_window=48)), "linear")
    # a window within which distances beyond the original length are seen
    assert said(model_of(config_of("mistral", sliding_window=4096)), "linear") == ""
    assert "no distance in them grows" in said(model_of(config_of("mistral", sliding_window=48)), "linear")
    assert said(model_of(config_of("mistral", sliding_window=None)), "linear") == ""
    # SmolLM3's layers that rotate read the whole context
    assert said(model_of(config_of("smollm3", no_rope_layers=[1, 0])), "linear") == ""


@pytest.mark.filterwarnings("error:.* rescales")
@pytest.mark.parametrize(
    ("name", "layers", "arguments"),
    [
        ("gemma2", "global", {"method": "yarn", "factor": 1}),
        ("mistral", "global", {"method": "linear", "factor": 1}),
        ("cohere2", "all", {"method": "ntk", "factor": 1}),
        ("gemma2", "global", {"method": "linear", "factor": 1, "log_n": False}),
    ],
)
def test_where_nothing_is_rescaled_nothing_is_said_of_it(name: str, layers: str, arguments: dict[str, Any]) -> None:
    changes = {"layer_types": BOTH} if name == "cohere2" else {}
    model = model_of(config_of(name, sliding_window=48, **changes))
    before = logits(model)
    ropescale.patch(model, layers=layers, **arguments)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("method", [{"method": "abf", "factor": 1, "theta": 5e5}, {"method": "power", "factor": 1}])
def test_what_rescales_at_factor_one_is_told_of(method: dict[str, Any]) -> None:
    model = model_of(config_of("gemma2", sliding_window=48))
    with pytest.warns(UserWarning, match="one rotary module serves sliding-window and full-attention layers"):
        ropescale.patch(model, **method)


def test_unscaled_raises_the_limit_alone(tmp_path: Path) -> None:
    model = model_of(config_of("cohere2", layer_types=BOTH, sliding_window=48))
    before, rope = logits(model), dict(model.config.rope_parameters)
    ropescale.patch(model, "unscaled", factor=4)
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(logits(loaded), before)
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == 256
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"] == rope
    ropescale.unpatch(model)
    assert model.config.max_position_embeddings == 64


HUNYUAN = {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "type": "dynamic"}
EQUAL = {"factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
# Published shapes of scaling at the size of a tiny model: family, its facts
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5 by its card": (
        "qwen2",
        {
            "rope_parameters": {
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e4,
                "rope_type": "yarn",
            }
        },
    ),
    "llama 3.1": (
        "llama",
        {
            "max_position_embeddings": 1024,
            "rope_parameters": {**EQUAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"},
        },
    ),
    "llama with equal bounds": (
        "llama",
        {
            "max_position_embeddings": 512,
            "rope_parameters": {**EQUAL, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "rope_type": "llama3"},
        },
    ),
    "vicuna": (
        "llama",
        {"max_sequence_length": 256, "rope_parameters": {"factor": 4.0, "rope_theta": 1e4, "rope_type": "linear"}},
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "max_position_embeddings": 512,
            "rope_parameters": {**EQUAL, "beta_fast": 32.0, "beta_slow": 1.0, "rope_type": "yarn", "truncate": False},
        },
    ),
    "kimi k2": (
        "deepseek_v3",
        {
            "max_position_embeddings": 512,
            "rope_parameters": {
                **EQUAL,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "rope_type": "yarn",
            },
        },
    ),
    "ministral 3": (
        "ministral3",
        {
            "max_position_embeddings": 512,
            "rope_parameters": {
                **EQUAL,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "llama_4_scaling_beta": 0.1,
                "rope_type": "yarn",
            },
        },
    ),
    "hunyuan": ("hunyuan_v1_dense", {"rope_parameters": {**HUNYUAN, "rope_theta": 1e4, "rope_type": "dynamic"}}),
    "hunyuan moe": ("hunyuan_v1_moe", {"rope_parameters": {**HUNYUAN, "rope_theta": 1e4, "rope_type": "dynamic"}}),
}


@pytest.mark.parametrize("case", sorted(PUBLISHED))
def test_factor_one_over_a_published_scaling_is_the_identity(case: str, tmp_path: Path) -> None:
    name, facts = PUBLISHED[case]
    model = model_of(config_of(name, **facts))
    before = logits(model)
    for method in ("linear", "yarn", "unscaled"):
        ropescale.patch(model, method, factor=1, existing="compose")
        assert (logits(model) - before).abs().max() <= 1e-6, method
        ropescale.unpatch(model)
    ropescale.patch(model, "linear", factor=2, existing="compose")
    changed = logits(model)
    assert not torch.allclose(changed, before, atol=1e-3)
    model.save_pretrained(tmp_path)
    assert torch.allclose(logits(ropescale.load(tmp_path)), changed, atol=1e-5)


@pytest.mark.parametrize("case", ["qwen2.5 by its card", "vicuna", "llama 3.1"])
def test_a_composed_patch_starts_from_the_reach_there_was(case: str) -> None:
    name, facts = PUBLISHED[case]
    config = config_of(name, **facts)
    reach = 1024 if case == "llama 3.1" else 256
    model = model_of(config)
    ropescale.patch(model, "linear", factor=2, existing="compose")
    done = ropescale.record(model)
    assert done is not None
    assert (done.original_length, done.target_length, config.max_position_embeddings) == (reach, 2 * reach, 2 * reach)


@pytest.mark.parametrize("name", ["hunyuan_v1_dense", "hunyuan_v1_moe"])
def test_alpha_is_a_theta_that_is_fixed(name: str) -> None:
    _, facts = PUBLISHED["hunyuan"]
    model = model_of(config_of(name, **facts))
    expected = 1e4 * 1000 ** (16 / 14)
    assert ropescale.read_geometry(model.config).theta == pytest.approx(expected)
    before = logits(model)
    for existing in ("error", "replace", "compose"):
        ropescale.patch(model, "linear", factor=1, existing=existing)
        assert torch.allclose(logits(model), before, atol=1e-6)
        ropescale.unpatch(model)
    ropescale.patch(model, "linear", factor=2)
    live = next(module.inv_freq for module in model.modules() if hasattr(module, "inv_freq"))
    assert live[-1].item() == pytest.approx(expected ** (-14 / 16) / 2, rel=1e-5)


@pytest.mark.parametrize("rope_type", ["yarn", "llama3"])
def test_an_original_length_is_not_taken_from_an_extended_maximum(rope_type: str) -> None:
    knobs = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope_type == "llama3" else {}
    config = config_of(
        "qwen2",
        max_position_embeddings=256,
        rope_parameters={"rope_type": rope_type, "factor": 4.0, "rope_theta": 1e4, **knobs},
    )
    with pytest.raises(RopescaleError, match=r"from what length it was scaled, .*; pass original_length=N"):
        ropescale.read_geometry(config, existing="replace")
    assert ropescale.read_geometry(config, existing="replace", original_length=64).original_length == 64
    assert ropescale.read_geometry(config, existing="compose").original_length == 256


def test_the_anchor_of_a_growing_query_scale_stays() -> None:
    """The scale is 1 + beta ln(1 + floor(position / anchor)): an anchor that moved would show beyond the first."""
    name, facts = PUBLISHED["ministral 3"]
    for existing, method, factor in (("compose", "yarn", 2), ("compose", "linear", 2), ("replace", "yarn", 16)):
        model = model_of(config_of(name, **facts))
        ropescale.patch(model, method, factor=factor, existing=existing)
        assert model.config.rope_parameters["original_max_position_embeddings"] == 64
        assert model.config.rope_parameters["llama_4_scaling_beta"] == 0.1


def test_zamba_2_keeps_its_new_maximum(tmp_path: Path) -> None:
    model = model_of(config_of("zamba2", use_long_context=True))
    assert model.config.max_position_embeddings == 16384
    ropescale.patch(model, "yarn", factor=2)
    changed = logits(model)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == 32768
    assert torch.allclose(logits(ropescale.load(tmp_path)), changed, atol=1e-5)
    ropescale.unpatch(model)
    assert model.config.use_long_context
    assert model.config.max_position_embeddings == 16384


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("yarn", {"beta_fast": 1.0, "beta_slow": 1.0}),
        ("yarn", {"beta_fast": 2.0, "beta_slow": 2.0, "ramp": "turns"}),
        ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 1.0}),
        ("by_parts", {"alpha": 2.0, "beta": 2.0}),
    ],
)
def test_equal_bounds_are_a_step(method: str, knobs: dict[str, Any]) -> None:
    geometry = ropescale.Geometry(rotary_dim=16, theta=1e4, original_length=64, head_dim=16, layers=2)
    chosen = ropescale.get_method(method)
    assert issubclass(chosen, FixedMethod)
    spectrum = chosen(factor=8, **knobs).spectrum(geometry)
    stretch = [1e4 ** (-2 * pair / 16) for pair in range(8)] / spectrum.inv_freq.numpy()
    assert all(math.isclose(one, 1, rel_tol=1e-4) or one > 1 for one in stretch)
    if knobs.get("ramp") == "turns" or method != "yarn":
        bound = next(iter(knobs.values()))
        turns = [64 * 1e4 ** (-2 * pair / 16) / (2 * math.pi) for pair in range(8)]
        expected = [1 if one >= bound else 8 for one in turns]
        assert stretch.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif("beam" not in CONFIG_MAPPING, reason="this version of Transformers has no such family")
def test_a_type_of_layers_without_rotation_is_not_called_missing() -> None:
    config = config_of("beam")
    rope = {**config.rope_parameters, "full_attention": None}
    model = model_of(config_of("beam", rope_parameters=rope))
    before = logits(model)
    with pytest.raises(InvalidArgumentError, match="without a rotation in full_attention layers"):
        ropescale.patch(model, "yarn", factor=4)
    assert "none that read the whole context" in said(model, "yarn", layers="all")
    ropescale.unpatch(model)
    assert said(model, "unscaled", layers="all") == ""
    assert torch.equal(logits(model), before)


@pytest.mark.skipif("olmo_hybrid" not in CONFIG_MAPPING, reason="this version of Transformers has no such family")
def test_a_family_that_is_published_without_a_rotation() -> None:
    model = model_of(config_of("olmo_hybrid", rope_parameters={"rope_type": "default", "rope_theta": None}))
    with pytest.raises(UnsupportedModelError, match="rope_theta, as published; scale nothing and write a larger"):
        ropescale.patch(model, "yarn", factor=4)


@pytest.mark.parametrize("name", ["cohere2", "exaone4"])
def test_a_record_of_layers_of_a_window_alone_is_read_again(name: str, tmp_path: Path) -> None:
    """Earlier versions rescaled them under "global" without a word."""
    model = model_of(config_of(name, layer_types=BOTH, sliding_window=48))
    before = logits(model)
    said(model, "yarn", layers="all")
    changed = logits(model)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["ropescale"]["layers"] = "global"
    for later in ("generation", "proof"):
        del config["ropescale"][later]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="only layers of a window of 48 tokens rotate, so yarn rescales those"):
        loaded = ropescale.load(tmp_path)
    assert torch.equal(logits(loaded), changed)
    assert ropescale.record(loaded).layers == "global"
    found = diagnose(tmp_path)
    assert [one.check for one in found] == ["no-effect"]
    assert "where only layers of a window of 48 tokens rotate" in str(found[0])
    # and the remedy
    ropescale.unpatch(loaded)
    ropescale.patch(loaded, "unscaled", factor=4)
    loaded.save_pretrained(tmp_path / "again")
    assert diagnose(tmp_path / "again") == []
    assert torch.equal(logits(loaded), before)


@pytest.mark.parametrize("name", ["cohere2", "exaone4", "llama"])
def test_inspect_says_where_only_windows_rotate(name: str, tmp_path: Path) -> None:
    facts = {} if name == "llama" else {"layer_types": BOTH, "sliding_window": 48}
    config_of(name, **facts).save_pretrained(tmp_path)
    shown = inspected(str(tmp_path))[1][0].facts()
    local = name != "llama"
    assert ("only those of a window of 48 tokens rotate" in shown["layers"][1]) is local
    assert ("method 'unscaled' raises the limit alone" in shown["scaled already"][1]) is local


@pytest.mark.skipif("mistral4" not in CONFIG_MAPPING, reason="a Transformers before this family")
def test_a_class_that_does_not_run_unscaled_is_refused_by_name() -> None:
    """Transformers' own fault: what is refused is shown to be so, and the line goes when it is mended."""
    sizes = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    rope = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}
    rope["original_max_position_embeddings"] = 64
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = config_of("mistral4", **sizes, **experts, num_key_value_heads=4, rope_parameters=rope)
    model = AutoModel.from_config(config).eval()
    with pytest.raises(RuntimeError, match="size of tensor"):
        model(input_ids=torch.arange(10)[None])
    with pytest.raises(UnsupportedModelError, match=r"^model type 'mistral4': .*runs only with a scaling stated"):
        ropescale.patch(model, "yarn", factor=4)
