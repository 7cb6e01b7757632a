"""Methods that act when attention reads give the same logits in every way of reading."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from families import LATE, config_of, model_of
from late import (
    CACHE,
    CASES,
    LENGTH,
    ORIGINAL,
    TOLERANCE,
    apart,
    compiled,
    every_case,
    every_method,
    no_grad,  # noqa: F401  # a fixture of every test here
    over,
    patched,
    prompts,
    read,
    unpatched,
)
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

import ropescale
from ropescale import get_method
from ropescale.errors import (
    RopescaleError,
)
from ropescale.methods.late import LateMethod


@pytest.mark.sampled(3)
@every_case
def test_every_way_of_reading_gives_the_same_logits(case: str) -> None:
    model, ids = patched(case), prompts()
    whole = model(ids).logits
    steps = [ids[:, :20], *ids[:, 20:].split(1, dim=1)]
    assert apart(read(model, steps, DynamicCache(config=model.config)), whole) < TOLERANCE
    static = StaticCache(config=model.config, max_cache_len=LENGTH + 6)
    assert apart(read(model, steps, static), whole) < TOLERANCE
    chunks = ids.split(17, dim=1)
    assert apart(read(model, chunks, DynamicCache(config=model.config)), whole) < TOLERANCE
    static = StaticCache(config=model.config, max_cache_len=LENGTH + 6)
    assert apart(read(model, chunks, static), whole) < TOLERANCE


@pytest.mark.sampled(3)
@every_case
def test_a_row_does_not_depend_on_its_neighbours_or_on_earlier_calls(case: str) -> None:
    model, ids = patched(case), prompts(rows=3)
    alone = [model(row[None]).logits[0] for row in ids]
    lengths = (LENGTH, 77, 41)
    rows, mask = torch.zeros(3, LENGTH, dtype=torch.long), torch.zeros(3, LENGTH, dtype=torch.long)
    for number, length in enumerate(lengths):
        rows[number, LENGTH - length :] = ids[number, :length]
        mask[number, LENGTH - length :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = model(rows, attention_mask=mask, position_ids=positions).logits
    cached = DynamicCache(config=model.config)
    pieces = []
    for first, last in ((0, 55), *((at, at + 1) for at in range(55, LENGTH))):
        pieces.append(
            model(
                rows[:, first:last],
                attention_mask=mask[:, :last],
                position_ids=positions[:, first:last],
                **over(cached),
            ).logits
        )
    stepwise = torch.cat(pieces, dim=1)
    for number, length in enumerate(lengths):
        for found in (together, stepwise):
            assert apart(found[number, LENGTH - length :], alone[number][:length]) < TOLERANCE


@pytest.mark.sampled(3)
@every_method
def test_generation_is_greedy_decoding_without_a_cache(case: str) -> None:
    model, ids = patched(case), prompts(length=24)
    expected = ids
    for _ in range(30):
        expected = torch.cat((expected, model(expected).logits[:, -1:].argmax(-1)), dim=1)
    common = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 30,
        "do_sample": False,
        "eos_token_id": 97,  # never chosen; without one prompt lookup fails in some versions
    }
    for way in ({}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 4}):
        found = model.generate(ids, **common, **way)  # prompt lookup of some versions gives a token too many
        assert torch.equal(found[:, : expected.shape[1]], expected)
    beams = [model.generate(ids, **common, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.parametrize(
    "case",
    [
        "dynamic_linear", "dynamic_ntk", "dynamic_self_extend", "dynamic_yarn", "jet_long", "lm_infinite", "streaming",
    ],
)  # fmt: skip
def test_inside_the_original_length_nothing_changes(case: str) -> None:
    ids = prompts()
    native = unpatched()(ids).logits
    found = patched(case)(ids).logits
    assert apart(found[:, :ORIGINAL], native[:, :ORIGINAL]) < 1e-4
    assert apart(found[:, ORIGINAL:], native[:, ORIGINAL:]) > 1


@pytest.mark.parametrize("case", ["dynamic_self_extend", "dynamic_yarn", "jet_long"])
def test_a_text_within_the_original_length_is_read_to_the_bit(case: str) -> None:
    """Where one pass reads it: over a cache keys are rotated by their distances, which rounds otherwise."""
    ids = prompts(rows=2, length=ORIGINAL + 1)
    native, found = unpatched(), patched(case)
    assert torch.equal(found(ids[:, :ORIGINAL]).logits, native(ids[:, :ORIGINAL]).logits)
    assert not torch.equal(found(ids).logits[:, -1], native(ids).logits[:, -1])


@pytest.mark.filterwarnings("ignore:.*one rotary module serves sliding-window")
@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", "dual_chunk", "alibi"])
def test_sliding_layers_beside_full_ones_are_read_alike_in_every_way(case: str) -> None:
    """Layers with a window hold fewer keys than the others, at other places."""
    config = config_of(
        "ministral",
        num_hidden_layers=4,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=ORIGINAL,
    )
    model, ids = model_of(config), prompts()
    name, knobs = CASES[case]
    ropescale.patch(model, name, **knobs)
    whole = model(ids).logits
    steps = [ids[:, :50], *ids[:, 50:].split(1, dim=1)]
    assert apart(read(model, steps, DynamicCache(config=model.config)), whole) < TOLERANCE
    assert apart(read(model, ids.split(17, dim=1), DynamicCache(config=model.config)), whole) < TOLERANCE
    static = StaticCache(config=model.config, max_cache_len=LENGTH + 6)
    assert apart(read(model, steps, static), whole) < TOLERANCE
    assert apart(whole, ropescale.unpatch(model)(ids).logits) > 0.1


def test_jumping_positions_are_read_without_a_cache_and_refused_over_one() -> None:
    model, ids = patched("rerope"), prompts(length=20)
    near = torch.arange(20)[None]
    far = torch.cat((near[:, :10], near[:, 10:] + 50), dim=1)
    ones = torch.ones_like(ids)
    jumped = model(ids, attention_mask=ones, position_ids=far, use_cache=False).logits
    assert apart(jumped, model(ids, attention_mask=ones, position_ids=near, use_cache=False).logits) > 0.1
    past = DynamicCache(config=model.config)
    model(ids[:, :5], **over(past))
    with pytest.raises(RopescaleError) as refusal:
        model(ids[:, :2], **over(past), position_ids=torch.tensor([[5, 9]]))
    assert str(refusal.value) == (
        "position_ids: must be contiguous over a cache with rerope, got jumps; leave position_ids out, or read "
        "without a cache"
    )


@pytest.mark.sampled(2)
@every_method
def test_gradients_of_both_computations_agree(case: str) -> None:
    model, ids = patched(case).requires_grad_(True), prompts(length=48)
    found = []
    for compute in ("blocks", "pairs", "checkpointed"):
        model.zero_grad()
        model.train(compute == "checkpointed")
        if compute == "checkpointed":
            older = "gradient_checkpointing_enable"  # as older versions call it
            enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, older)
            enable({"use_reentrant": False})
        if compute == "pairs":
            past = DynamicCache(config=model.config)
            loss = torch.cat([model(one, **over(past)).logits for one in ids.split(1, 1)], 1).square().mean()
        else:
            loss = model(ids, use_cache=False).logits.square().mean()
        loss.backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    scale = float(found[0].abs().max())
    assert scale > 0
    assert apart(found[0], found[2]) < 1e-3 * scale
    assert apart(found[0], found[1]) < 5e-3 * scale


def test_a_cache_is_known_by_what_it_does_not_by_its_name_or_place() -> None:
    model, ids = patched("self_extend"), prompts()
    whole = model.model(ids).last_hidden_state[:, 40:]

    class Stranger:
        """A cache that is of no class of Transformers, as some families have one."""

        def __init__(self) -> None:
            self.inner = DynamicCache(config=model.config)

        def get_seq_length(self, layer: int = 0) -> int:
            return int(self.inner.get_seq_length(layer))

        def update(self, *given: Any, **named: Any) -> Any:
            return self.inner.update(*given, **named)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    for past in (DynamicCache(config=model.config), Stranger()):
        model.model(ids[:, :40], None, None, past)
        assert apart(model.model(ids[:, 40:], None, None, past).last_hidden_state, whole) < TOLERANCE
    for name in {"past_key_values", CACHE}:
        past = DynamicCache(config=model.config)
        with warnings.catch_warnings():
            if name != CACHE:  # an old name, which Transformers warns of
                warnings.simplefilter("ignore", FutureWarning)
            model.model(ids[:, :40], **{name: past})
            found = model.model(ids[:, 40:], **{name: past}).last_hidden_state
        assert apart(found, whole) < TOLERANCE


def test_every_late_method_is_of_its_kind() -> None:
    assert LATE
    assert all(issubclass(get_method(name), LateMethod) for name in LATE)


COMPILED = [
    pytest.param(case, marks=pytest.mark.slow)
    for case in (
        "dual_chunk", "streaming", "alibi", "cope", "dpe", "jet_long", "dynamic_self_extend",
        "dynamic_self_extend with a ceiling",
    )
]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", *COMPILED])
def test_forward_and_static_decoding_compile_to_one_graph(case: str) -> None:
    model, ids = patched(case), prompts(length=60)
    whole = model(ids).logits
    at_once, decoded = compiled(model, ids, 40)
    assert apart(at_once, whole) < TOLERANCE
    assert apart(decoded, whole[:, 40:]) < TOLERANCE


def test_a_deep_model_in_half_precision_is_not_refused_for_its_rounding() -> None:
    """The rounding of thirty layers is as large as their sum; each layer by itself gives what it gave."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=ORIGINAL,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    ropescale.patch(model.to(torch.bfloat16), "self_extend")
    assert ropescale.record(model).proof["layers"] == "0-29"
