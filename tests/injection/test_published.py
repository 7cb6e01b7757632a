"""DeepSeek V2 and V3 and Llama 4 as they are published, with every kind of method, against attention by hand."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from by_hand import (
    Rule,
    by_hand,
    capped,
    grouped,
    llama3,
    mscale,
    pretrained,
    slowing,
    still,
    straight,
    yarn,
)
from families import OLDER, VISION, model_of, randomise
from late import TOLERANCE, apart, over
from late import no_grad as no_grad
from shapes import sized
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, DynamicCache, PreTrainedConfig, PreTrainedModel

import ropescale
from ropescale.errors import InvalidArgumentError, UnsupportedModelError

LENGTH, READ, PAIRS = 16, 60, 8  # of pretraining, and of the text that is read, in tokens; of a head
CHUNK = 24  # tokens
LATENT = {
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "rope_theta": 10000,
    "max_position_embeddings": 40 * LENGTH,
}
DEEPSEEK = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": LENGTH,
}
LLAMA_4 = {
    "model_type": "llama4_text",
    "num_hidden_layers": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 96,
    "rope_theta": 500000.0,
    "attention_chunk_size": CHUNK,
    "attn_temperature_tuning": True,
    "attn_scale": 0.1,
    "floor_scale": LENGTH,
}
# What is published of positions, with lengths that a test can read past
PUBLISHED: dict[str, dict[str, Any]] = {
    "deepseek v2": {
        **LATENT,
        "model_type": "deepseek_v2",
        "topk_method": "greedy",
        "rope_scaling": {**DEEPSEEK, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek v3": {
        **LATENT,
        "model_type": "deepseek_v3",
        "rope_scaling": {**DEEPSEEK, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "llama 4 scout": {
        **LLAMA_4,
        "use_qk_norm": True,
        "max_position_embeddings": 64 * LENGTH,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": LENGTH,
            "rope_type": "llama3",
        },
    },
    "llama 4 maverick": {**LLAMA_4, "use_qk_norm": False, "max_position_embeddings": LENGTH, "rope_scaling": None},
}
LITE = {"q_lora_rank": None}  # DeepSeek V2 Lite, whose queries are projected at once
LATENT_ATTENTION, LLAMAS = ("deepseek v2", "deepseek v3"), ("llama 4 scout", "llama 4 maverick")
SCALED = [name for name in PUBLISHED if PUBLISHED[name]["rope_scaling"]]


def shape(name: str, **changes: Any) -> PreTrainedConfig:
    raw = {**sized(PUBLISHED[name]), **changes}
    if name in LATENT_ATTENTION:
        raw = {**raw, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24}
        raw = {**raw, "num_key_value_heads": 4}
    return CONFIG_MAPPING[raw["model_type"]].from_dict(raw)


def made(name: str, **changes: Any) -> PreTrainedModel:
    return model_of(shape(name, **changes))


def runs(name: str) -> bool:
    """Whether this Transformers builds and reads the unpatched model; 5.0 fails over experts of some."""
    try:
        made(name)(text())
    except Exception:  # whatever an old version's own code says
        return False
    return True


def text() -> Tensor:
    return torch.randint(3, 128, (1, READ), generator=torch.Generator().manual_seed(1))


RUNNING = [name for name in PUBLISHED if not OLDER or runs(name)]
# Whether this Transformers leaves out the softmax scale that DeepSeek V2 is published with
UNREAD = OLDER and made("deepseek v2").model.layers[0].self_attn.scaling == 32**-0.5


def patch(model: PreTrainedModel, method: str, **arguments: Any) -> str:
    """What was said while a model was patched in all of its layers."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ropescale.patch(model, method, layers="all", **arguments)
    return " ".join(str(one.message) for one in said)


@dataclass(frozen=True)
class Today:
    """What a published checkpoint does."""

    theta: Tensor
    inv_freq: Tensor
    scale: float  # of the softmax besides

    @classmethod
    def of(cls, name: str) -> Today:
        base = pretrained(PAIRS, 1e4 if name in LATENT_ATTENTION else 5e5)
        inv_freq = {
            "deepseek v2": yarn(PAIRS, 1e4, LENGTH, 40),
            "deepseek v3": yarn(PAIRS, 1e4, LENGTH, 40),
            "llama 4 scout": llama3(PAIRS, 5e5, LENGTH, 8),
        }
        scale = {"deepseek v2": 1.0 if UNREAD else mscale(40, 0.707) ** 2, "deepseek v3": mscale(40) ** 2}
        return cls(base, inv_freq.get(name, base), scale.get(name, 1.0))


def log_n(i: Tensor) -> Tensor:
    return ((i + 1).log() / math.log(LENGTH)).clamp(min=1)


COMPOSED = {"existing": "compose", "original_length": LENGTH}
# Method -> its arguments, and what each layer does by them
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "linear": ("linear", {"factor": 4}, lambda now, _: Rule(straight(now.theta / 4))),
    "linear on top": (
        "linear",
        {"factor": 2, **COMPOSED},
        lambda now, _: Rule(straight(now.inv_freq / 2), scale=now.scale),
    ),
    "linear and log_n": (
        "linear",
        {"factor": 4, "log_n": True},
        lambda now, _: Rule(straight(now.theta / 4), growth=log_n),
    ),
    "log_n on top": (
        "unscaled",
        {"factor": 1, "log_n": True, **COMPOSED},
        lambda now, _: Rule(straight(now.inv_freq), scale=now.scale, growth=log_n),
    ),
    "self_extend": (
        "self_extend",
        {"group_size": 4, "window": 8},
        lambda now, _: Rule(grouped(now.theta, 4, 8)),
    ),
    "self_extend on top": (
        "self_extend",
        {"group_size": 4, "window": 8, **COMPOSED},
        lambda now, _: Rule(grouped(now.inv_freq, 4, 8), scale=now.scale),
    ),
    "rerope on top": (
        "rerope",
        {"window": 8, **COMPOSED},
        lambda now, _: Rule(capped(now.inv_freq, 8), scale=now.scale),
    ),
    "dynamic_linear": ("dynamic_linear", {}, lambda now, _: Rule(slowing(now.theta, LENGTH))),
    "dynamic_linear on top": (
        "dynamic_linear",
        COMPOSED,
        lambda now, _: Rule(slowing(now.inv_freq, LENGTH), scale=now.scale),
    ),
    "nope": ("nope", {}, lambda now, _: Rule(still)),
    # a layer that keeps its rotation keeps the scale of the softmax that belongs to it
    "nope in every second layer": (
        "nope",
        {"every": 2},
        lambda now, number: Rule(still) if number % 2 else Rule(straight(now.inv_freq), scale=now.scale),
    ),
}
SLOW = ("linear", "rerope on top", "dynamic_linear", "dynamic_linear on top", "nope", "log_n on top")
GRID = [
    pytest.param(name, case, marks=pytest.mark.slow if case in SLOW else ())
    for name in RUNNING
    for case in CASES
    if name in SCALED or "on top" not in case
]


@pytest.mark.parametrize(("name", "case"), GRID)
def test_a_published_checkpoint_reads_as_by_hand_and_decodes_as_it_reads(name: str, case: str) -> None:
    method, arguments, rule = CASES[case]
    if name in SCALED:
        arguments = {"existing": "replace", **arguments}
    model, ids, now = made(name), text(), Today.of(name)
    before = model(ids).logits
    with by_hand(model, lambda number: rule(now, number)):
        expected = model(ids).logits
    assert apart(expected, before) > 1e-2
    patch(model, method, **arguments)
    whole = model(ids).logits
    assert apart(whole, expected) < TOLERANCE
    for past in (DynamicCache(), DynamicCache(config=model.config)):
        steps = [model(piece, **over(past)).logits for piece in (ids[:, :30], *ids[:, 30:].split(1, dim=1))]
        assert apart(torch.cat(steps, dim=1), whole) < TOLERANCE
    assert torch.equal(ropescale.unpatch(model)(ids).logits, before)


@pytest.mark.parametrize("name", RUNNING)
def test_attention_by_hand_is_that_of_the_unpatched_model(name: str) -> None:
    model, ids, now = made(name, **(LITE if name == "deepseek v2" else {})), text(), Today.of(name)
    native = model(ids).logits
    with by_hand(model, lambda _: Rule(straight(now.inv_freq), scale=now.scale)):
        assert apart(model(ids).logits, native) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in LATENT_ATTENTION if not (UNREAD and name == "deepseek v2")])
def test_a_replaced_scale_is_that_of_the_new_factor(name: str) -> None:
    model, ids = made(name), text()
    expected = Rule(straight(yarn(PAIRS, 1e4, LENGTH, 80)), scale=mscale(80) ** 2)
    with by_hand(model, lambda _: expected):
        logits = model(ids).logits
    said = patch(model, "yarn", factor=80, existing="replace", mscale=1.0, mscale_all_dim=1.0)
    assert said == ""
    assert apart(model(ids).logits, logits) < TOLERANCE
    native = model_of(shape(name, rope_scaling={**DEEPSEEK, "factor": 80, "mscale": 1.0, "mscale_all_dim": 1.0}))
    assert apart(native(ids).logits, logits) < TOLERANCE


def test_a_scale_of_the_softmax_that_a_factor_on_a_part_of_the_head_replaces_is_named() -> None:
    model, ids = made("deepseek v3"), text()
    expected = Rule(straight(yarn(PAIRS, 1e4, LENGTH, 80)), sharper=mscale(80) ** 2)
    with by_hand(model, lambda _: expected):
        logits = model(ids).logits
    assert patch(model, "yarn", factor=80, existing="replace") == (
        "deepseek_v3: the scale of the softmax that mscale_all_dim=1 gave (1.874) is replaced by an attention factor "
        "of 1.438 on the part of each head that rotates; give mscale=1 and mscale_all_dim=1 to have it in the "
        "softmax, as the checkpoint had"
    )
    assert apart(model(ids).logits, logits) < TOLERANCE


@pytest.mark.parametrize("name", LLAMAS)
def test_an_attention_factor_acts_where_nothing_divides_it_out(name: str) -> None:
    """Scout normalises queries and keys after it rotates them, so that what multiplies cos and sin is lost."""
    ids, lost = text(), name == "llama 4 scout"
    inv_freq, sharper = yarn(PAIRS, 5e5, LENGTH, 4), 1.0 if lost else mscale(4) ** 2
    existing = "replace" if name in SCALED else "error"
    for arguments, growth in (({}, None), ({"log_n": True}, log_n)):  # in the rotary module, and when attention reads
        model, rule = made(name), Rule(straight(inv_freq), sharper, growth=growth)
        with by_hand(model, lambda _, rule=rule: rule):
            expected = model(ids).logits
        said = patch(model, "yarn", factor=4, existing=existing, **arguments)
        assert apart(model(ids).logits, expected) < TOLERANCE
        assert (
            "llama4_text: layers normalise queries and keys after they rotate them, so the attention factor of yarn "
            "(1.139) has no effect" in said
        ) is lost


def test_a_base_whose_factor_is_divided_out_has_none() -> None:
    """Scout with a yarn that multiplies cos and sin, to no effect: what is put on top does not bring it back."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH}
    model, ids = made("llama 4 scout", rope_scaling=scaling), text()
    rule = Rule(grouped(yarn(PAIRS, 5e5, LENGTH, 4), 4, 8))
    with by_hand(model, lambda _: rule):
        expected = model(ids).logits
    patch(model, "self_extend", group_size=4, window=8, **COMPOSED)
    assert apart(model(ids).logits, expected) < TOLERANCE
    ropescale.unpatch(model)
    before = model(ids).logits
    patch(model, "linear", factor=1, **COMPOSED)
    assert apart(model(ids).logits, before) < 1e-6


def test_a_window_beyond_a_chunk_is_met_by_no_pair() -> None:
    model, ids = made("llama 4 scout", attention_chunk_size=LENGTH), text()
    before = model(ids).logits
    patch(model, "self_extend", group_size=4, window=LENGTH, **COMPOSED)
    assert apart(model(ids).logits, before) < TOLERANCE
    ropescale.unpatch(model)
    patch(model, "self_extend", group_size=4, window=LENGTH // 2, **COMPOSED)
    assert apart(model(ids).logits, before) > 1e-2


def test_a_temperature_is_for_layers_that_rotate_and_says_so() -> None:
    model, ids = made("llama 4 scout", attention_chunk_size=LENGTH), text()
    before = model(ids).logits
    own = "attn_temperature_tuning (attn_scale 0.1, floor_scale 16)"
    for layers in ("global", "full"):
        with pytest.raises(InvalidArgumentError) as refusal:
            ropescale.patch(model, "unscaled", factor=2, temperature="llama4", layers=layers, **COMPOSED)
        assert str(refusal.value) == (
            "temperature: must go with layers='all' in a llama4_text, where it multiplies queries of the layers that "
            f"rotate, which see 16 tokens at most, got 'llama4' and layers '{layers}'; leave it out: those that read "
            f"the whole context have one of their own, {own}"
        )
    assert patch(model, "unscaled", factor=2, temperature="log_n", **COMPOSED) == (
        "llama4_text: only layers of a window of 16 tokens rotate, so log_n multiplies their queries, and the layers "
        f"that read the whole context go on with {own}"
    )
    ropescale.unpatch(model)
    assert patch(model, "linear", factor=2, log_n=True, existing="replace") == (
        "llama4_text: only layers of a window of 16 tokens rotate, so linear rescales those, log_n multiplies their "
        f"queries, and the layers that read the whole context go on with {own}"
    )
    ropescale.unpatch(model)
    plain = made("llama 4 scout", attention_chunk_size=LENGTH, attn_temperature_tuning=False)
    with pytest.raises(InvalidArgumentError, match="leave it out, for in those no attention is divided among more"):
        ropescale.patch(plain, "unscaled", factor=2, log_n=True, **COMPOSED)
    assert torch.equal(model(ids).logits, before)


def test_a_temperature_counts_from_a_published_reach_of_millions() -> None:
    """There ln n / ln L is 1 + 1e-7, which float32 does not tell from 1 in a score."""
    model = made("llama 4 scout", max_position_embeddings=10485760)
    patch(model, "unscaled", factor=1.5, log_n=True, existing="compose")
    done = ropescale.record(model)
    assert done is not None
    assert (done.original_length, done.target_length) == (10485760, 15728640)


def whole() -> PreTrainedModel:
    """Llama 4 with the tower that looks at images."""
    vision = {
        **VISION,
        "intermediate_size": 128,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    config = CONFIG_MAPPING["llama4"](
        text_config=shape("llama 4 scout").to_dict(), vision_config=vision, image_token_index=100, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    randomise(model)
    return model


def test_llama_4_is_read_late_within_the_model_that_looks_at_images(tmp_path: Path) -> None:
    model, ids, now = whole(), text(), Today.of("llama 4 scout")
    pictured, pixels = ids.clone(), torch.randn(1, 3, 28, 28)
    pictured[0, 5] = 100
    try:
        model(input_ids=pictured, pixel_values=pixels)
    except AttributeError as error:  # 5.0 and 5.24 ask the outputs of their own towers for what they do not have
        pytest.skip(f"this Transformers cannot read with one: {error}")
    before = model(input_ids=ids).logits
    rule = Rule(grouped(now.theta, 4, 8))
    with by_hand(model, lambda _: rule):
        expected = model(input_ids=ids).logits
        seen = model(input_ids=pictured, pixel_values=pixels).logits
    assert apart(seen, expected) > 1e-2
    patch(model, "self_extend", group_size=4, window=8, existing="replace")
    found = model(input_ids=ids).logits
    assert apart(found, expected) < TOLERANCE
    assert apart(model(input_ids=pictured, pixel_values=pixels).logits, seen) < TOLERANCE
    past = DynamicCache(config=model.config.text_config)
    steps = [model(input_ids=piece, **over(past)).logits for piece in (ids[:, :30], *ids[:, 30:].split(1, dim=1))]
    assert apart(torch.cat(steps, dim=1), found) < TOLERANCE
    model.save_pretrained(tmp_path)
    assert torch.equal(ropescale.load(tmp_path)(input_ids=ids).logits, found)
    assert torch.equal(ropescale.unpatch(model)(input_ids=ids).logits, before)


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("method", ["linear", "dynamic_yarn"])
def test_a_published_checkpoint_is_saved_and_loaded_and_undone(name: str, method: str, tmp_path: Path) -> None:
    model, ids = made(name), text()
    before = model(ids).logits
    arguments = {"existing": "compose"} if name in SCALED else {}
    patch(model, method, **arguments, **({"factor": 2} if method == "linear" else {}))
    changed = model(ids).logits
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(loaded(ids).logits, changed)
    assert torch.equal(ropescale.unpatch(loaded)(ids).logits, before)


@pytest.mark.skipif("deepseek v2" not in RUNNING, reason="this Transformers cannot read with one")
def test_a_transformers_that_reads_no_mscale_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 5.0 to 5.14 do with DeepSeek V2."""
    attention = type(made("deepseek v2").model.layers[0].self_attn)
    own = attention.__init__

    def early(self: Any, *arguments: Any, **keywords: Any) -> None:
        own(self, *arguments, **keywords)
        self.scaling = self.qk_head_dim ** (-0.5)

    monkeypatch.setattr(attention, "__init__", early)
    model, ids, now = made("deepseek v2"), text(), Today.of("deepseek v2")
    for existing, inv_freq in (("replace", now.theta / 2), ("compose", now.inv_freq / 2)):
        rule = Rule(straight(inv_freq))
        with by_hand(model, lambda _, rule=rule: rule):
            expected = model(ids).logits
        patch(model, "linear", factor=2, existing=existing)
        assert apart(model(ids).logits, expected) < TOLERANCE
        ropescale.unpatch(model)
    with pytest.raises(UnsupportedModelError) as refusal:
        ropescale.patch(model, "yarn", factor=80, existing="replace", mscale=1.0, mscale_all_dim=1.0)
    assert str(refusal.value) == (
        "deepseek_v2: mscale_all_dim needs layers that multiply their softmax by it, got DeepseekV2Attention of "
        f"transformers {transformers.__version__}, which does not; take a newer transformers, or leave mscale_all_dim "
        "out"
    )
