"""patch and unpatch over every family and every method."""

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import (
    NAMES,
    NATIVE,
    NATIVE_ONLY,
    NESTED,
    config_of,
    family,
    fingerprint,
    fixed_methods,
    inv_freq_of,
    knobs_for,
    logits,
    model_of,
    rope_of,
)
from transformers import PreTrainedModel

import ropescale
from ropescale.doctor.diagnosis import diagnose
from ropescale.errors import RopescaleError
from ropescale.families.catalogue import family_of
from ropescale.injection.places import cache_keyword


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random model of each family in turn; every test leaves it as it found it."""
    return family(request.param)


# expected of every family with sliding windows, and checked on its own below
pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")


def patched_with(model: torch.nn.Module, method: str, **arguments: object) -> torch.nn.Module:
    pairs = ropescale.read_geometry(getattr(model, "config", None)).pairs
    return ropescale.patch(model, method, factor=4, **knobs_for(method, pairs), **arguments)


def rotary_of(model: torch.nn.Module) -> torch.nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))


def adapter(model: torch.nn.Module) -> peft.LoraConfig:
    """An adapter of every projection that PEFT allows.

    Those of a Mamba layer it refuses; a router that returns more than one tensor, and one that takes its input in
    groups, it breaks.
    """
    left = [name for name, _ in model.named_modules() if ".mamba." in name or name.endswith((".router", ".o_a_proj"))]
    return peft.LoraConfig(target_modules="all-linear", exclude_modules=left or None, r=2, init_lora_weights=False)


def test_undo_is_exact(model: PreTrainedModel) -> None:
    """Every method in turn, from the same starting point."""
    before, config, state = logits(model), copy.deepcopy(model.config.to_dict()), fingerprint(model)
    for method in fixed_methods(model.config.model_type):
        patched_with(model, method)
        assert torch.equal(logits(model), before) == (method == "unscaled"), method
        assert fingerprint(model) == state, method
        ropescale.unpatch(model)
        assert torch.equal(logits(model), before), method
        assert model.config.to_dict() == config, method
        assert fingerprint(model) == state, method
        assert ropescale.record(model) is None, method


def test_patched_equals_native_bit_for_bit(model: PreTrainedModel) -> None:
    """Against a second model, built by Transformers from a config of the same parameters."""
    for method in NATIVE:
        with ropescale.patched(model, method, factor=4, **knobs_for(method)):
            config = copy.deepcopy(model.config)
            del config.ropescale
            assert rope_of(config)["rope_type"] == spelled(config.model_type, method)
            native = model_of(config)
            assert torch.equal(inv_freq_of(native), inv_freq_of(model)), method
            assert torch.equal(logits(native), logits(model)), method


def spelled(family_name: str, method: str) -> str:
    """The rope_type that states a method natively; Phi-3's have longrope alone, which states it pair by pair."""
    native = {"abf": "default", "ntk": "default", "by_parts": "llama3", "unscaled": "default"}.get(method, method)
    return "longrope" if family_of(family_name).longrope_only and native != "default" else native


@pytest.mark.parametrize("journey", ["through PEFT", "after deepcopy", "after a cast", "through pickle"])
def test_undo_is_exact_on_a_journey(model: PreTrainedModel, journey: str) -> None:
    """Patched here, unpatched there: the result is the model that made the same journey unpatched."""
    traveller, control = copy.deepcopy(model), copy.deepcopy(model)
    patched_with(traveller, "yarn")
    if journey == "through PEFT":
        lora = adapter(model)
        torch.manual_seed(3)
        control = peft.get_peft_model(control, lora)
        torch.manual_seed(3)
        traveller = peft.get_peft_model(traveller, lora)
    elif journey == "after deepcopy":
        original, traveller = traveller, copy.deepcopy(traveller)
    elif journey == "after a cast":
        traveller.to(torch.bfloat16)
        control.to(torch.bfloat16)
        assert inv_freq_of(traveller).dtype == torch.float32
    else:
        traveller = pickle.loads(pickle.dumps(traveller))
    assert not torch.equal(logits(traveller), logits(control))
    state = fingerprint(traveller)
    ropescale.unpatch(traveller)
    assert torch.equal(logits(traveller), logits(control))
    assert fingerprint(traveller) == state == fingerprint(control)
    config, reference = (getattr(m, "config", None).to_dict() for m in (traveller, control))
    assert config == reference
    if journey == "after deepcopy":
        assert ropescale.record(original) is not None


def test_patching_through_peft_is_patching_the_base(model: PreTrainedModel) -> None:
    lora = adapter(model)
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora)
    before = logits(wrapped)
    assert patched_with(wrapped, "linear") is wrapped
    bare = wrapped.get_base_model()
    assert ropescale.record(bare) == ropescale.record(wrapped)
    after = logits(wrapped)
    assert not torch.equal(after, before)
    ropescale.unpatch(bare)
    assert torch.equal(logits(wrapped), before)


def test_a_model_under_ddp_is_patched_and_undone(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'meet'}")
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(family("llama"))
        before = logits(wrapped)
        ropescale.patch(wrapped, "yarn", factor=4)
        assert ropescale.record(wrapped.module) == ropescale.record(wrapped)
        assert not torch.equal(logits(wrapped), before)
        ropescale.unpatch(wrapped)
        assert torch.equal(logits(wrapped), before)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("cast", ["before", "after"])
def test_spectrum_stays_float32_when_the_model_is_cast(dtype: torch.dtype, cast: str) -> None:
    model = family("llama")
    expected = ropescale.get_method("yarn")(factor=4).spectrum(ropescale.read_geometry(model.config)).inv_freq
    if cast == "before":
        model.to(dtype)
    rounded = rotary_of(model).inv_freq.clone()
    ropescale.patch(model, "yarn", factor=4)
    if cast == "after":
        model.to(dtype)
    assert rotary_of(model).inv_freq.dtype == torch.float32
    assert torch.equal(rotary_of(model).inv_freq, expected)
    assert next(model.parameters()).dtype == dtype
    ropescale.unpatch(model)
    if cast == "before":
        assert torch.equal(rotary_of(model).inv_freq, rounded)
    assert rotary_of(model).inv_freq.dtype == dtype


def test_spectrum_survives_a_journey_that_loses_values() -> None:
    """Through the meta device and .to_empty, which is how large models change places."""
    model = ropescale.patch(family("llama"), "power", factor=4)
    expected = rotary_of(model).inv_freq.clone()
    model.to("meta").to_empty(device="cpu")
    assert torch.equal(rotary_of(model).inv_freq, expected)
    assert torch.equal(rotary_of(model).original_inv_freq, expected)


def test_a_move_that_moves_nothing_keeps_the_tensors() -> None:
    """A captured graph replays from their addresses."""
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    before = rotary_of(model).inv_freq
    assert rotary_of(model.to("cpu").float()).inv_freq is before


@pytest.mark.parametrize("order", ["patched before", "patched after"])
def test_compiled_model_sees_the_patch_and_its_undo(order: str) -> None:
    model = family("llama")
    before = logits(model)
    if order == "patched before":
        ropescale.patch(model, "yarn", factor=4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    if order == "patched after":
        assert torch.allclose(logits(compiled), before, atol=1e-5)
        ropescale.patch(compiled, "yarn", factor=4)
    assert torch.allclose(logits(compiled), logits(model), atol=1e-5)
    assert (logits(compiled) - before).abs().max() > 0.1
    ropescale.unpatch(compiled)
    assert torch.allclose(logits(compiled), before, atol=1e-5)
    assert torch.equal(logits(model), before)


def test_decoding_with_a_cache_equals_one_forward_across_the_original_length() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    ids = torch.randint(3, 128, (1, 100), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        whole = model(ids).logits
        step, keyword = model(ids[:, :50], use_cache=True), cache_keyword(model)
        rows = [step.logits]
        for position in range(50, 100):
            step = model(ids[:, position : position + 1], use_cache=True, **{keyword: step[keyword]})
            rows.append(step.logits)
    assert (torch.cat(rows, dim=1) - whole).abs().max() < 5e-5


def test_generation_runs_to_the_target_length() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=100, do_sample=False, eos_token_id=None)
    assert out.shape == (1, 103)
    assert model.config.max_position_embeddings == 256


def test_gradients_flow_as_in_the_native_model() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    config = copy.deepcopy(model.config)
    del config.ropescale
    native = model_of(config)
    ids = torch.randint(3, 128, (1, 90), generator=torch.Generator().manual_seed(5))
    for one in (model, native):
        one.train()
        one(ids, labels=ids).loss.backward()
    for ours, theirs in zip(model.parameters(), native.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_module_identity_and_wrappers_survive() -> None:
    model = family("llama")
    rotary = rotary_of(model)
    ropescale.patch(model, "yarn", factor=4)
    assert rotary_of(model) is rotary
    assert rotary.config is model.config


def test_state_dict_never_holds_frequencies() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    assert not [name for name in model.state_dict() if "inv_freq" in name]


def test_context_manager_restores_after_an_error() -> None:
    model = family("llama")
    before = logits(model)
    inside = []

    def use() -> None:
        with ropescale.patched(model, "ntk", factor=8) as same:
            inside.append((same is model, ropescale.record(model).method))
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        use()
    assert inside == [(True, "ntk")]
    assert torch.equal(logits(model), before)
    assert ropescale.record(model) is None


def test_a_failure_after_the_first_change_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llama")
    before, config = logits(model), model.config.to_dict()

    whole = type(rotary_of(model)).forward

    def broken(rotary: torch.nn.Module, *arguments: object, **keywords: object) -> object:
        if "_apply" in vars(rotary):  # from the first change on
            raise MemoryError("no room")
        return whole(rotary, *arguments, **keywords)

    monkeypatch.setattr(type(rotary_of(model)), "forward", broken)
    with pytest.raises(RopescaleError, match="must run with yarn, got MemoryError: no room; this version cannot"):
        ropescale.patch(model, "yarn", factor=4)
    monkeypatch.undo()
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert ropescale.record(model) is None


def test_a_rotary_module_that_ignores_its_buffers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llama")
    rotary, fixed = rotary_of(model), rotary_of(model).inv_freq.clone()
    before, config = logits(model), model.config.to_dict()

    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * fixed
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()

    monkeypatch.setattr(rotary, "forward", forward)
    with pytest.raises(RopescaleError, match="does not read its frequencies from its buffer"):
        ropescale.patch(model, "yarn", factor=4)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


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


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


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
