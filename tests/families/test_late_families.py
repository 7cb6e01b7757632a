"""Methods that act when attention reads, in every family."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from families import NAMES, OLDER, config_of, family, in_turn, logits, model_of, wants
from huggingface_hub.errors import StrictDataclassError
from late import (
    CACHE,
    CASES,
    TOLERANCE,
    added,
    apart,
    no_grad,  # noqa: F401  # a fixture of every test here
    over,
    prompts,
    read,
)
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
)

import ropescale
from ropescale.checkpoint import added_parameters
from ropescale.errors import (
    CheckpointError,
    RopescaleError,
    UnsupportedModelError,
    VerificationError,
)

REFUSED = {
    **dict.fromkeys(
        ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4", "qwen4_exp_text"),
        r"indexer, which is given cos and sin",
    ),
    **dict.fromkeys(("deepseek_v4", "moshi"), "needs a text model with one rotary module"),
    "doge": "take what attention gives back",
    "falcon": "the function that Transformers looks up",
    "gpt_neox_japanese": "the function that Transformers looks up",
    "nemotron": "hands keywords down to its attention",
    "stablelm": "hands keywords down to its attention",
    "zamba2": "mamba_decoder, which is given cos and sin",
}


def refuses(model: Any) -> bool:
    """Whether an older Transformers lacks what a late method needs of this family, so that it is refused there."""
    try:
        with ropescale.patched(model, "self_extend"):
            return False
    except (UnsupportedModelError, VerificationError):
        return True


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:.*one rotary module serves sliding-window")
@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_rotated_late_or_refused_by_name(name: str) -> None:
    model = family(name)
    if OLDER:  # whose fused attention leaves the soft cap of Gemma 2 out
        model.set_attn_implementation("eager")
    inside, beyond = logits(model, 48), logits(model)
    config = model.config.to_dict()
    if name in REFUSED or (OLDER and refuses(model)):
        with pytest.raises((UnsupportedModelError, VerificationError), match=name if OLDER else REFUSED[name]):
            ropescale.patch(model, "dynamic_yarn")
    else:
        ropescale.patch(model, "self_extend", window=1000)  # wider than the text: the identity
        assert apart(logits(model), beyond) < 1e-5 * max(1.0, float(beyond.abs().max()))
        ropescale.unpatch(model)
        ropescale.patch(model, "dynamic_yarn")
        assert apart(logits(model, 48), inside) < 1e-5 * max(1.0, float(inside.abs().max()))
        assert apart(logits(model), beyond) > 1e-3
        ropescale.unpatch(model)
    assert torch.equal(logits(model), beyond)
    assert model.config.to_dict() == config


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:.*one rotary module serves sliding-window")
@pytest.mark.parametrize("name", in_turn([name for name in NAMES if name not in REFUSED], 0, 2))
def test_a_family_decodes_over_a_cache_as_it_reads_at_once(name: str) -> None:
    model = family(name)
    if OLDER:  # as above
        model.set_attn_implementation("eager")
        if refuses(model):
            pytest.skip("refused by this Transformers")
    before = logits(model)
    ropescale.patch(model, "dynamic_yarn")
    ids = prompts(length=73)
    whole = model(ids).logits
    past, rows = None, []  # the first step makes the cache that this family wants
    for piece in (ids[:, :70], *ids[:, 70:].split(1, dim=1)):
        step = model(piece, **over(past), use_cache=True)
        past = step[CACHE]
        rows.append(step.logits)
    found = torch.cat(rows, dim=1)
    assert apart(found, whole) < 1e-5 * max(10.0, float(whole.abs().max()))
    ropescale.unpatch(model)
    assert torch.equal(logits(model), before)


SHORT, LONG = [1 + pair / 10 for pair in range(8)], [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]


def longrope(pairs: int, **besides: Any) -> dict[str, Any]:
    """The scaling that Phi-3 with 128k tokens and its successors are published with."""
    lists = {"short_factor": SHORT[:pairs], "long_factor": LONG[:pairs]}
    return {"rope_type": "longrope", "rope_theta": 1e4, **lists, "original_max_position_embeddings": 64, **besides}


# Phi-3 mini 128k; Phi-4 mini, and the multimodal one; Phi-3.5 MoE
LISTING_TYPES: dict[str, dict[str, Any]] = {
    "phi3": {"rope_parameters": longrope(8)},
    "phi3 in part": {"rope_parameters": longrope(6), "partial_rotary_factor": 0.75},
    "phi4_multimodal": {"rope_parameters": longrope(6), "partial_rotary_factor": 0.75},
    "phimoe": {"rope_parameters": longrope(8, short_mscale=1.24, long_mscale=1.25)},
}
ALONE = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except Exception as error:
    sys.exit(0 if "ropescale" in str(error) else f"{error!r} does not say what it met")
sys.exit("loaded without its method")
"""
RELOADED = """
import sys, torch, ropescale
ids, expected = torch.load(sys.argv[2])
with torch.no_grad():
    sys.exit(0 if torch.equal(ropescale.load(sys.argv[1])(ids).logits, expected) else "another model")
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("name", LISTING_TYPES)
def test_a_config_that_lists_the_types_it_may_state_is_saved_with_that_of_ropescale(
    name: str, read_before: bool, tmp_path: Path
) -> None:
    """As published, by the list of short or of long texts, whichever the model has read last."""
    family_name, published = name.split()[0], {**LISTING_TYPES[name], "max_position_embeddings": 256}
    if family_name not in NAMES:
        return
    plain = {**LISTING_TYPES[name], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    lists = {key: published["rope_parameters"][key] for key in ("short_factor", "long_factor")}
    ids = prompts(length=160)
    model = model_of(config_of(family_name, **published))
    if read_before:
        logits(model)
    for method, knobs in (("self_extend", {"group_size": 4, "window": 10}), ("longrope", {"factor": 4, **lists})):
        unscaled = model_of(config_of(family_name, **plain))
        ropescale.patch(model, method, existing="replace", **knobs)
        assert apart(logits(model), logits(ropescale.patch(unscaled, method, **knobs))) < 1e-5
        found = model(ids).logits
        steps = [ids[:, :60], *ids[:, 60:].split(1, dim=1)]
        assert apart(read(model, steps, DynamicCache(config=model.config)), found) < TOLERANCE
        model.save_pretrained(tmp_path / method)
        assert (
            json.loads((tmp_path / method / "config.json").read_text())["rope_parameters"]["rope_type"] == "ropescale"
        )
        loaded = ropescale.load(tmp_path / method)
        assert torch.equal(loaded(ids).logits, found)
        assert ropescale.diagnose(tmp_path / method) == []
        with pytest.raises(CheckpointError, match=r"must be loaded by ropescale, got method .* call ropescale\.load"):
            AutoModelForCausalLM.from_pretrained(tmp_path / method)
        for one in (model, loaded):
            native = model_of(config_of(family_name, **published))
            assert torch.equal(logits(ropescale.unpatch(one)), logits(native))
            assert one.config.rope_parameters == native.config.rope_parameters


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_in_a_fresh_process_it_is_loaded_by_ropescale_and_refused_by_transformers(tmp_path: Path) -> None:
    model, ids = ropescale.patch(family("phi3"), "dynamic_yarn"), prompts(length=80)
    model.save_pretrained(tmp_path / "saved")
    torch.save((ids, model(ids).logits), tmp_path / "expected.pt")
    for script, *arguments in ((ALONE,), (RELOADED, str(tmp_path / "expected.pt"))):
        command = [sys.executable, "-c", script, str(tmp_path / "saved"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_other_types_are_refused_as_before() -> None:
    for kind in ("linear", "dynamic", "ropescale2"):
        with pytest.raises((StrictDataclassError, ValueError), match=kind):
            config_of("phi3", rope_parameters={**longrope(8), "rope_type": kind, "factor": 2.0})


def test_a_longrope_as_published_can_be_put_in_again() -> None:
    """The far token of the proof is read by the long list already: there is nothing to change."""
    model = model_of(config_of("phi3", rope_parameters=longrope(8), max_position_embeddings=256))
    before = logits(model)
    ropescale.patch(model, "longrope", factor=4, long_factor=LONG, existing="replace")
    assert apart(logits(model), before) < 1e-5
    short = logits(model, 48)
    assert apart(short, logits(ropescale.unpatch(model), 48)) > 1e-3


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("learned", "longrope with two lists")])
def test_latent_attention_is_read_alike_in_every_way(case: str) -> None:
    """Keys are rotated at their end, have one size and values another, and are cached before they are expanded."""
    model, ids = family("deepseek_v3"), prompts()
    native = model(ids).logits
    name, knobs = CASES[case]
    ropescale.patch(model, name, **knobs)
    generator = torch.Generator().manual_seed(2)
    for parameter in added(model).values():
        parameter.normal_(0, 0.3, generator=generator)
    model = model.double() if name == "cope" else model
    whole = model(ids).logits
    steps = [ids[:, :50], *ids[:, 50:].split(1, dim=1)]
    assert apart(read(model, steps, DynamicCache(config=model.config)), whole) < TOLERANCE
    assert apart(whole, native) > 0.1
    assert torch.equal(ropescale.unpatch(model)(ids).logits, native.to(whole.dtype)) or name == "cope"


BARE = [
    name
    for name in ("deepseek_v3", "gemma2", "gemma3_text", "gpt_neox", "gpt_oss", "llama", "llama4_text", "qwen3_5_text")
    if name in CONFIG_MAPPING
]


def hidden(model: Any, ids: Tensor, **given: Any) -> Tensor:
    found: Tensor = model(input_ids=ids, **given).last_hidden_state
    return found


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:.*one rotary module serves sliding-window")
@pytest.mark.filterwarnings("error:.*has no place")
@pytest.mark.parametrize("method", ["self_extend", "alibi", "learned"])
@pytest.mark.parametrize("name", BARE)
def test_a_decoder_without_a_head_is_patched_as_one_with_a_head(name: str, method: str, tmp_path: Path) -> None:
    knobs = {"self_extend": {"group_size": 4, "window": 10}, "learned": {"max_length": 128}}.get(method, {})
    whole, ids = family(name), prompts(length=73)
    model = AutoModel.from_config(config_of(name)).eval()
    inner = whole.model if whole.base_model is whole else whole.base_model
    model.load_state_dict(inner.state_dict())
    native = hidden(model, ids)
    ropescale.patch(model, method, **knobs)
    ropescale.patch(whole, method, **knobs)
    for parameter in [*added_parameters(model).values(), *added_parameters(whole).values()]:
        parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    assert apart(hidden(model, ids), hidden(inner, ids)) == 0
    assert apart(hidden(model, ids), native) > 1e-3
    past, rows = None, []  # the first step makes the cache that this family wants
    for piece in (ids[:, :70], *ids[:, 70:].split(1, dim=1)):
        step = model(piece, **over(past), use_cache=True)
        past = step[CACHE]
        rows.append(step.last_hidden_state)
    assert apart(torch.cat(rows, dim=1), hidden(model, ids)) < 1e-4
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(hidden(loaded, ids), hidden(model, ids))
    for one in (model, loaded):
        assert torch.equal(hidden(ropescale.unpatch(one), ids), native)


@pytest.mark.parametrize("name", ["gemma3_text", "smollm3", "cohere2"])
@pytest.mark.parametrize("method", ["learned", "sinusoidal"])
def test_vectors_that_enter_the_first_layer_reach_layers_that_do_not_rotate(name: str, method: str) -> None:
    """Such layers are not named, and are given something else all the same."""
    model = model_of(config_of(name, **{} if name == "gemma3_text" else {"num_hidden_layers": 4}))
    before = logits(model)
    ropescale.patch(model, method, layers="all" if name == "cohere2" else "global", **CASES[method][1])
    assert apart(logits(model, 120), before[:, :120]) > 1e-3
    assert torch.equal(logits(ropescale.unpatch(model)), before)


HEADS = (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering)


@pytest.mark.parametrize("auto", HEADS)
def test_heads_of_other_kinds_stand_over_a_patched_decoder(auto: Any, tmp_path: Path) -> None:
    model, ids = auto.from_config(config_of("qwen2")).eval(), prompts(rows=2, length=60)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    read_rows = [model(ids, attention_mask=mask)[0]]
    ropescale.patch(model, "self_extend", group_size=4, window=10)
    read_rows.append(model(ids, attention_mask=mask)[0])
    alone = model(ids[1:, 20:])[0]
    of_row = read_rows[1][1] if alone.shape[1:] == read_rows[1].shape[1:] else read_rows[1][1, 20:]
    assert apart(of_row, alone[0]) < 1e-5
    assert apart(*read_rows) > 1e-5
    model.save_pretrained(tmp_path)
    assert torch.equal(ropescale.load(tmp_path)(ids, attention_mask=mask)[0], read_rows[1])
    assert torch.equal(ropescale.unpatch(model)(ids, attention_mask=mask)[0], read_rows[0])


PUBLISHED = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
# of those that this version of Transformers has, which build the scale in (DeepSeek V2 not in every version)
LATENT_ATTENTION = [
    name
    for name in (
        *("axk1", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3"),
        "youtu",
    )
    if name in CONFIG_MAPPING
    and "mscale_all_dim" in inspect.getsource(import_module(f"transformers.models.{name}.modeling_{name}"))
]


@pytest.mark.parametrize(
    ("name", "mscale"),
    [
        pytest.param(*one.values, mscale, marks=one.marks)
        for turn, mscale in enumerate((0.707, 1.0))
        for one in in_turn(LATENT_ATTENTION, turn, 2)
    ],
)
def test_a_softmax_scale_that_was_built_in_gives_way_to_a_method_that_acts_in_attention(
    name: str, mscale: float, tmp_path: Path
) -> None:
    """DeepSeek V2, V3 and Kimi K2 as published are scaled already, by a factor that is in every layer's softmax."""
    rope = {**PUBLISHED, "mscale": mscale, "mscale_all_dim": mscale}
    model = model_of(config_of(name, rope_parameters=rope, max_position_embeddings=256))
    before = logits(model)
    for method, knobs in (("self_extend", {"group_size": 4, "window": 10}), ("dynamic_yarn", {})):
        plain = model_of(config_of(name, max_position_embeddings=32))
        ropescale.patch(model, method, existing="replace", **knobs)
        assert apart(logits(model), logits(ropescale.patch(plain, method, **knobs))) < 1e-5
        ropescale.unpatch(model)
        assert torch.equal(logits(model), before)
    ropescale.patch(model, "dynamic_yarn", existing="replace").save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(ropescale.unpatch(loaded)), before)


@pytest.mark.parametrize("name", LATENT_ATTENTION)
def test_log_n_leaves_the_softmax_scale_of_a_method_in_place(name: str, tmp_path: Path) -> None:
    knobs = {"factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0}
    model, other = (model_of(config_of(name, max_position_embeddings=32)) for _ in range(2))
    static = logits(ropescale.patch(other, "yarn", **knobs), 32)
    ropescale.patch(model, "yarn", log_n=True, **knobs)
    assert apart(logits(model, 32), static) < 1e-5 * max(1.0, float(static.abs().max()))  # log_n begins beyond
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(ropescale.load(tmp_path)), logits(model))
    rope = {**PUBLISHED, "mscale": 1.0, "mscale_all_dim": 1.0}
    scaled = model_of(config_of(name, rope_parameters=rope, max_position_embeddings=256))
    before = logits(scaled)
    ropescale.patch(scaled, "linear", factor=1, existing="compose", log_n=True)
    assert apart(logits(scaled), before) < 1e-5 * max(1.0, float(before.abs().max()))
    assert torch.equal(logits(ropescale.unpatch(scaled)), before)


@wants("minimax_m3_vl_text")
def test_a_layer_that_chooses_keys_by_rotation_of_its_own_is_refused() -> None:
    """An indexer reads positions too, and its choice shows only in texts longer than it."""
    sparse = model_of(
        config_of(
            "minimax_m3_vl_text",
            layer_types=["full_attention", "minimax_m3_sparse"],
            index_n_heads=2,
            index_head_dim=32,
            index_block_size=16,
        )
    )
    before = logits(sparse)
    with pytest.raises(UnsupportedModelError) as refusal:
        ropescale.patch(sparse, "self_extend")
    assert str(refusal.value) == (
        "minimax_m3_vl_text: self_extend needs a model that rotates in attention alone, got "
        "layers.1.self_attn.indexer, which is given cos and sin; use a method of fixed frequencies, such as yarn"
    )
    assert torch.equal(logits(sparse), before)
    ropescale.patch(sparse, "yarn", factor=4)
    assert apart(logits(sparse), before) > 1e-3


def test_local_layers_with_a_rotation_of_their_own_keep_it() -> None:
    """They rotate early, while the layers that read the whole context rotate late; not both kinds can."""
    model, ids = family("gemma3_text"), prompts()
    rotary = model.model.rotary_emb
    before, local = model(ids).logits, rotary.sliding_attention_inv_freq
    with pytest.raises(RopescaleError) as refusal:
        ropescale.patch(model, "self_extend", layers="all")
    assert str(refusal.value) == (
        "layers: must be 'global' for self_extend, which acts in attention, where layer types have rotations of their "
        "own, got 'all'; leave it out"
    )
    ropescale.patch(model, "self_extend", window=10)
    assert rotary.sliding_attention_inv_freq is local
    assert not rotary.full_attention_inv_freq.any()
    assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert model.config.rope_parameters["full_attention"]["rope_type"] == "ropescale"
    assert apart(model(ids).logits, before) > 1e-2
    assert torch.equal(ropescale.unpatch(model)(ids).logits, before)


@wants("hrm_text")
def test_a_prefix_that_is_read_in_both_directions_is_refused() -> None:
    model, ids = family("hrm_text"), prompts(length=9)
    prefix = torch.ones_like(ids)
    assert apart(model(ids, token_type_ids=prefix).logits, model(ids).logits) > 1e-3
    ropescale.patch(model, "self_extend")
    assert torch.equal(model(ids, token_type_ids=0 * prefix).logits, model(ids).logits)
    with pytest.raises(RopescaleError) as refusal:
        model(ids, token_type_ids=prefix)
    assert str(refusal.value) == (
        "token_type_ids: must be absent or zero with self_extend, which reads backwards only, got tokens of another "
        "type; leave them out, or call ropescale.unpatch(model) first"
    )


@wants("qwen3_5_text")
def test_positions_of_an_image_are_refused() -> None:
    model = ropescale.patch(family("qwen3_5_text"), "self_extend")
    with pytest.raises(RopescaleError) as refusal:
        model(prompts(length=9), position_ids=torch.arange(9).expand(4, 1, 9))
    assert str(refusal.value) == (
        "position_ids: must be [batch, tokens] with self_extend, got [4, 1, 9]; text has one position a token"
    )
