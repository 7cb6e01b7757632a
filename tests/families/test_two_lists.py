"""Checkpoints published with two lists of stretches, for short and for long texts, and what composes with them.

What is expected is computed here in float64 from weights and published formulas, or by Transformers itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import NAMES, config_of, model_of
from late import (
    TOLERANCE,
    apart,
    no_grad,  # noqa: F401  # a fixture of every test here
    prompts,
    read,
)
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

import ropescale
from ropescale import get_method
from ropescale.errors import ExportError, InvalidArgumentError
from ropescale.export import export
from ropescale.request import Request
from ropescale.search.trial import trials

SWITCH, MAXIMUM, LENGTH = 64, 128, 200  # tokens: of the short list, as published, and that are read
SHORT, LONG = [1 + pair / 10 for pair in range(8)], [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
THETA, HEAD = 1e4, 16
# Phi-3 mini 128k states its lists so; Phi-4 mini rotates three quarters of a head, and has a window
PHI_3 = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": MAXIMUM,
    "original_max_position_embeddings": SWITCH,
    "sliding_window": 4 * MAXIMUM,
    "rope_theta": THETA,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PHI_4 = {
    **PHI_3,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": LONG[:6]},
}
PUBLISHED = {"Phi-3": PHI_3, "Phi-4": PHI_4}
FACTOR_OF_LISTS = math.sqrt(1 + math.log(MAXIMUM / SWITCH) / math.log(SWITCH))

Turns = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def published(name: str, tmp_path: Path, **changes: Any) -> Any:
    """The config as Transformers reads it from a file of its makers."""
    (tmp_path / "published").mkdir(exist_ok=True)
    (tmp_path / "published" / "config.json").write_text(json.dumps({**PUBLISHED[name], **changes}))
    return AutoConfig.from_pretrained(tmp_path / "published")


def theta_series(pairs: int) -> Tensor:
    return THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


def base(name: str, place: Tensor) -> Tensor:
    """[..., pairs]: the frequencies of queries at these places, each by the list of its own."""
    lists = PUBLISHED[name]["rope_scaling"]
    short, long = (torch.tensor(lists[key], dtype=torch.float64) for key in ("short_factor", "long_factor"))  # type: ignore[index]
    series = theta_series(len(short))
    return torch.where((place < SWITCH)[..., None], series / short, series / long)


def ramp(pairs: int) -> Tensor:
    """YaRN's share of a pair that is slowed, by its turns over today's maximum (arXiv:2309.00071, section 3.4)."""

    def pair_of(turns: float) -> float:
        return pairs * math.log(MAXIMUM / (turns * 2 * math.pi)) / math.log(THETA)

    low, high = max(math.floor(pair_of(32)), 0), min(math.ceil(pair_of(1)), 2 * pairs - 1)
    return ((torch.arange(pairs, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)


def plain(name: str) -> Turns:
    def turns(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distance = (query[:, None] - key[None]).double()
        return (
            distance[..., None] * base(name, query)[:, None],
            torch.full((len(query),), FACTOR_OF_LISTS),
            distance >= 0,
        )

    return turns


def linear(name: str) -> Turns:
    def turns(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles, factor, visible = plain(name)(query, key)
        return angles / 2, factor, visible

    return turns


def yarn(name: str) -> Turns:
    def turns(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles, factor, visible = plain(name)(query, key)
        slowed = ramp(angles.shape[-1])
        return angles * (slowed / 2 + 1 - slowed), factor * (0.1 * math.log(2) + 1), visible

    return turns


def dynamic_yarn(name: str) -> Turns:
    """Each query by the power of two of today's maximum that holds it."""

    def turns(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles, factor, visible = plain(name)(query, key)
        scale = 2.0 ** torch.ceil(torch.log2((query.double() + 1) / MAXIMUM)).clamp(min=0)
        slowed = ramp(angles.shape[-1])
        share = slowed / scale[:, None] + 1 - slowed
        return angles * share[:, None], factor * (0.1 * scale.log() + 1), visible

    return turns


def self_extend(name: str) -> Turns:
    """Groups of 4 beyond a window of 10 (arXiv:2401.01325, equations 3 and 4)."""

    def turns(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, j = query[:, None], key[None]
        grouped = i // 4 - j // 4 + 10 - 10 // 4
        distance = torch.where(i - j < 10, i - j, grouped).double()
        angles = distance[..., None] * base(name, query)[:, None]
        return angles, torch.full((len(query),), FACTOR_OF_LISTS), i >= j

    return turns


COMPOSED: dict[str, tuple[Callable[[str], Turns], str, dict[str, Any]]] = {
    "as it is, with log-n": (plain, "linear", {"factor": 1, "log_n": True}),
    "linear": (linear, "linear", {"factor": 2}),
    "yarn": (yarn, "yarn", {"factor": 2}),
    "dynamic_yarn": (dynamic_yarn, "dynamic_yarn", {}),
    "self_extend": (self_extend, "self_extend", {"group_size": 4, "window": 10}),
}


def expected(
    model: PreTrainedModel, ids: Tensor, *turns: Turns, log_n: bool = False, begin: int = 0, grad: bool = False
) -> Tensor:
    """[n, vocabulary]: what a Phi-3 says of one row, in float64, from its weights; `turns` of the layers in turn."""
    config: Any = model.config
    weights = {name: value.double() for name, value in model.state_dict(keep_vars=grad).items()}
    place = begin + torch.arange(len(ids))
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weights[name]

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        angles, factor, visible = turns[layer % len(turns)](place, place)
        rotation, pairs = torch.polar(torch.ones_like(angles), angles), angles.shape[-1]  # [n, n, pairs]
        fused = norm(x, f"{at}.input_layernorm.weight") @ weights[f"{at}.self_attn.qkv_proj.weight"].T
        q, k, v = torch.split(fused, [heads * HEAD, key_heads * HEAD, key_heads * HEAD], dim=-1)
        q, k, v = (one.unflatten(-1, (-1, HEAD)).transpose(0, 1) for one in (q, k, v))
        k, v = (one.repeat_interleave(heads // key_heads, 0) for one in (k, v))
        if log_n:
            q = q * (torch.log(place.double() + 1) / math.log(MAXIMUM)).clamp(min=1)[:, None]
        of_query, of_key = (torch.complex(one[..., :pairs], one[..., pairs : 2 * pairs]) for one in (q, k))
        turned = torch.einsum("hip,hjp,ijp->hij", of_query, of_key.conj(), rotation).real
        rest = q[..., 2 * pairs :] @ k[..., 2 * pairs :].transpose(1, 2)
        scores = (turned * factor.double().square()[:, None] + rest) / math.sqrt(HEAD)
        read_ = scores.masked_fill(~visible, -math.inf).softmax(-1) @ v
        x = x + read_.transpose(0, 1).flatten(1) @ weights[f"{at}.self_attn.o_proj.weight"].T
        up = norm(x, f"{at}.post_attention_layernorm.weight") @ weights[f"{at}.mlp.gate_up_proj.weight"].T
        gate, up = up.chunk(2, dim=-1)
        x = x + (gate * gate.sigmoid() * up) @ weights[f"{at}.mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


def test_the_reference_is_transformers_where_one_list_reads_a_text(tmp_path: Path) -> None:
    """Within the switch in every layer; beyond it what the latest queries of one layer read."""
    for name in PUBLISHED:
        model, ids = model_of(published(name, tmp_path)), prompts(length=SWITCH)
        assert apart(model(ids).logits[0].double(), expected(model, ids[0], plain(name))) < TOLERANCE
        model, ids = model_of(published(name, tmp_path, num_hidden_layers=1)), prompts(length=LENGTH)
        whole, found = expected(model, ids[0], plain(name)), model(ids).logits[0].double()
        assert apart(found[SWITCH:], whole[SWITCH:]) < TOLERANCE
        assert apart(found[:SWITCH], whole[:SWITCH]) > 0.1


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, marks=() if (turn + place) % 2 == 0 else pytest.mark.slow)
        for turn, name in enumerate(PUBLISHED)
        for place, case in enumerate(COMPOSED)
    ],
)
def test_what_composes_with_two_lists_is_read_by_each_querys_own(name: str, case: str, tmp_path: Path) -> None:
    """In one pass, over caches, padded, and loaded again; and taken out to the bit."""
    of, method, knobs = COMPOSED[case]
    model, ids = model_of(published(name, tmp_path)), prompts(length=LENGTH)
    native = model(ids).logits
    ropescale.patch(model, method, existing="compose", **knobs)
    assert ropescale.record(model).original_length == MAXIMUM  # type: ignore[union-attr]
    found = model(ids).logits
    assert apart(found[0].double(), expected(model, ids[0], of(name), log_n="log_n" in knobs)) < TOLERANCE
    steps = [ids[:, : SWITCH - 4], *ids[:, SWITCH - 4 : SWITCH + 4].split(1, dim=1), ids[:, SWITCH + 4 :]]
    static = StaticCache(config=model.config, max_cache_len=LENGTH + 8)
    for cache in (DynamicCache(config=model.config), static):
        assert apart(read(model, steps, cache), found) < TOLERANCE
    for begin in (0, 30):  # padded on the right, on the left
        rows, mask = torch.cat((ids, ids.roll(begin))), torch.ones_like(ids).repeat(2, 1)
        mask[1, :begin] = 0
        mask[1, LENGTH - 30 + begin :] = 0
        alone = model(rows[1:, begin : LENGTH - 30 + begin]).logits
        padded = model(rows, attention_mask=mask).logits
        assert apart(padded[1:, begin : LENGTH - 30 + begin], alone) < TOLERANCE
        assert apart(padded[:1], found) < TOLERANCE
    model.save_pretrained(tmp_path / "saved")
    assert ropescale.diagnose(tmp_path / "saved") == []
    loaded = ropescale.load(tmp_path / "saved")
    assert torch.equal(loaded(ids).logits, found)
    for one in (model, loaded):
        assert torch.equal(ropescale.unpatch(one)(ids).logits, native)
        assert one.config.rope_parameters == published(name, tmp_path).rope_parameters
        assert one.config.original_max_position_embeddings == SWITCH


def test_documents_of_a_packed_row_are_read_as_alone(tmp_path: Path) -> None:
    """Each counts from 0, so each has its own short and long list; and a text that begins at 20 is read from there."""
    model = ropescale.patch(model_of(published("Phi-4", tmp_path)), "yarn", factor=2, existing="compose")
    one, other = prompts(length=150), prompts(length=90).flip(1)
    place = torch.cat((torch.arange(150), torch.arange(90)))[None]
    packed = model(torch.cat((one, other), dim=1), position_ids=place, use_cache=False).logits
    assert apart(packed[:, :150], model(one).logits) < TOLERANCE
    assert apart(packed[:, 150:], model(other).logits) < TOLERANCE
    later = model(other, position_ids=torch.arange(20, 110)[None], use_cache=False).logits
    assert apart(later[0].double(), expected(model, other[0], yarn("Phi-4"), begin=20)) < TOLERANCE
    assert apart(later, model(other).logits) > 0.1


def test_generation_across_the_switch_takes_what_one_pass_would(tmp_path: Path) -> None:
    """Transformers reads a text again there, which changes nothing."""
    model, ids = model_of(published("Phi-3", tmp_path)), prompts(rows=2, length=SWITCH - 6)
    over = model.generate(ids[:1], max_new_tokens=10, do_sample=False, eos_token_id=None)
    if not torch.equal(model(over).logits[0, SWITCH:-1].argmax(-1), over[0, SWITCH + 1 :]):
        pytest.skip("this Transformers forgets the text at the switch, of the unpatched model too")
    ropescale.patch(model, "dynamic_yarn", existing="compose")
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    made = model.generate(ids, attention_mask=mask, max_new_tokens=14, do_sample=False, eos_token_id=None)
    for row, begin in ((0, 0), (1, 9)):
        whole = model(made[row : row + 1, begin:]).logits[0]
        assert torch.equal(whole[-15:-1].argmax(-1), made[row, -14:])


OTHERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "phimoe": {"short_mscale": 1.2, "long_mscale": 1.3},
    "minicpm3": {},
}


@pytest.mark.parametrize("name", [name for name in OTHERS if name in NAMES])
def test_other_families_with_two_lists(name: str, tmp_path: Path) -> None:
    """Within today's maximum dynamic methods change nothing, and Transformers says what a row within the switch is."""
    rope = {"rope_type": "longrope", "rope_theta": THETA, "short_factor": SHORT, "long_factor": LONG, **OTHERS[name]}
    rope["original_max_position_embeddings"] = SWITCH
    model, ids = (
        model_of(config_of(name, rope_parameters=rope, max_position_embeddings=MAXIMUM)),
        prompts(length=LENGTH),
    )
    native, within = model(ids).logits, model(ids[:, :SWITCH]).logits
    ropescale.patch(model, "dynamic_yarn", existing="compose")
    found = model(ids).logits
    assert apart(model(ids[:, :SWITCH]).logits, within) < TOLERANCE
    assert apart(found[:, :SWITCH], within) < TOLERANCE
    assert apart(found[:, SWITCH:], native[:, SWITCH:]) > 0.1
    steps = [ids[:, : SWITCH - 2], *ids[:, SWITCH - 2 : SWITCH + 2].split(1, dim=1), ids[:, SWITCH + 2 :]]
    assert apart(read(model, steps, DynamicCache(config=model.config)), found) < TOLERANCE
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(loaded(ids).logits, found)
    for one in (model, loaded):
        assert torch.equal(ropescale.unpatch(one)(ids).logits, native)
        stated = one.config.rope_parameters["original_max_position_embeddings"]
        assert getattr(one.config, "original_max_position_embeddings", stated) == stated == SWITCH


def test_candidates_of_a_search_are_read_by_both_lists(tmp_path: Path) -> None:
    """What is swapped from one trial to the next would be rotated twice where attention rotates."""
    model, ids = model_of(published("Phi-3", tmp_path)), prompts(length=LENGTH)
    native = model(ids).logits
    with trials(model, Request(existing="compose")) as put:
        for factor in (4.0, 2.0):
            put(get_method("linear")(factor=factor))
        assert apart(model(ids).logits[0].double(), expected(model, ids[0], linear("Phi-3"))) < TOLERANCE
    assert torch.equal(model(ids).logits, native)


@pytest.mark.slow
def test_two_lists_in_one_graph(tmp_path: Path) -> None:
    model, ids = model_of(published("Phi-4", tmp_path)), prompts(length=SWITCH + 20)
    ropescale.patch(model, "dynamic_yarn", existing="compose")
    torch._dynamo.reset()
    graph = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert apart(graph(ids, use_cache=False).logits, model(ids).logits) < TOLERANCE


def test_gradients_are_those_of_the_definition(tmp_path: Path) -> None:
    model, ids = model_of(published("Phi-3", tmp_path, num_hidden_layers=1)), prompts(length=LENGTH)
    ropescale.patch(model, "yarn", factor=2, existing="compose")
    weight = model.get_parameter("model.layers.0.self_attn.qkv_proj.weight")
    whole = torch.autograd.grad(model(ids).logits.square().mean(), weight)[0]
    defined = torch.autograd.grad(expected(model, ids[0], yarn("Phi-3"), grad=True).square().mean(), weight)[0]
    assert apart(whole, defined) < 1e-4 * float(defined.abs().max())


def test_logits_of_an_export_are_those_of_the_long_list_at_every_length(tmp_path: Path) -> None:
    """Which is exact beyond the switch in one layer, and what plain Transformers makes of one config."""
    model, ids = model_of(published("Phi-3", tmp_path, num_hidden_layers=1)), prompts(length=LENGTH)
    model.save_pretrained(tmp_path / "source")
    asked = {"to": "transformers", "method": "yarn", "factor": 2, "existing": "compose"}
    with pytest.raises(
        ExportError, match=r"each query reads by that of its own position; nearest .* over the long list"
    ):
        export(tmp_path / "source", tmp_path / "exact", **asked)
    with pytest.raises(
        InvalidArgumentError, match=r"^existing: must be 'replace' for a phi3 on disk .*, got 'compose'; "
    ):
        ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "b", "yarn", factor=2, existing="compose")
    done = export(tmp_path / "source", tmp_path / "nearest", lossy=True, **asked)
    assert "yarn over the long list at every length in the place of yarn" in done.approximation
    nearest = AutoModelForCausalLM.from_pretrained(tmp_path / "nearest")
    expected_ = expected(model, ids[0], yarn("Phi-3"))
    found = nearest(ids).logits[0].double()
    assert apart(found[SWITCH:], expected_[SWITCH:]) < TOLERANCE
    assert apart(found[:SWITCH], expected_[:SWITCH]) > 0.1
    assert apart(nearest(ids[:, :SWITCH]).logits[0].double(), found[:SWITCH]) < TOLERANCE


@pytest.mark.parametrize("existing", ["compose", "replace"])
def test_layers_that_nope_leaves_go_on_by_both_lists(existing: str, tmp_path: Path) -> None:
    model, ids = model_of(published("Phi-3", tmp_path)), prompts(length=LENGTH)

    def none(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles, _, visible = plain("Phi-3")(query, key)
        return torch.zeros_like(angles), torch.ones(len(query)), visible

    ropescale.patch(model, "nope", on=[1], existing=existing)
    assert apart(model(ids).logits[0].double(), expected(model, ids[0], plain("Phi-3"), none)) < TOLERANCE
