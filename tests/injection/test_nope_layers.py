"""NoPE in some layers, and a window for those that go on rotating."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family
from late import LENGTH, TOLERANCE, apart, compiled, llama, padded, prompts, read
from late import no_grad as no_grad
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

import ropescale
from ropescale.errors import ExportError, RopescaleError
from ropescale.export.canonical import canonical

WAYS: dict[str, tuple[dict[str, Any], set[int], int | None]] = {
    "every second": ({"every": 2}, {1, 3}, None),
    "every fourth with a window": ({"every": 4, "window": 20}, {3}, 20),
    "the first and the last": ({"on": [0, 3]}, {0, 3}, None),
    "one with a window": ({"on": [2], "window": 7}, {2}, 7),
    "one with a window beyond what is read": ({"on": [2], "window": 400}, {2}, 400),
    "all": ({"every": 1}, {0, 1, 2, 3}, None),
}
every_way = pytest.mark.parametrize("way", WAYS)


def patched(way: str, **more: Any) -> LlamaForCausalLM:
    return ropescale.patch(llama(), "nope", **WAYS[way][0], **more)


@contextmanager
def by_hand(model: LlamaForCausalLM, without: set[int], window: int | None) -> Iterator[None]:
    """An unpatched model whose layers get cosines of 1 and sines of 0, or a mask of their own, from hooks."""

    def still(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        cos, sin = kwargs["position_embeddings"]
        return args, {**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    def narrow(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        n = kwargs["hidden_states"].shape[1] if "hidden_states" in kwargs else args[0].shape[1]
        allowed = torch.zeros(n, n)
        for i in range(n):
            for j in range(n):
                if j > i or i - j >= (window or n):
                    allowed[i, j] = float("-inf")
        return args, {**kwargs, "attention_mask": allowed[None, None]}

    hooks = []
    for number, layer in enumerate(model.model.layers):
        if number in without:
            hooks.append(layer.self_attn.register_forward_pre_hook(still, with_kwargs=True))
        elif window is not None:
            hooks.append(layer.self_attn.register_forward_pre_hook(narrow, with_kwargs=True))
    yield
    for hook in hooks:
        hook.remove()


@every_way
def test_layers_without_position_and_with_a_window_are_those_made_by_hand(way: str) -> None:
    _, without, window = WAYS[way]
    ids, native = prompts(rows=2), llama()
    with by_hand(native, without, window):
        expected = native(ids).logits
    assert apart(expected, native(ids).logits) > 0.1
    assert apart(patched(way)(ids).logits, expected) < TOLERANCE


@every_way
def test_decoding_over_every_cache_gives_what_one_pass_gives(way: str) -> None:
    model, ids = patched(way), prompts()
    whole = model(ids).logits
    pieces = (ids[:, :37], *torch.split(ids[:, 37:], 1, dim=1))
    for past in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=LENGTH + 6)):
        assert apart(read(model, pieces, past), whole) < TOLERANCE


@every_way
@pytest.mark.parametrize("given", [False, True], ids=["without positions", "with positions"])
def test_a_padded_row_reads_as_the_row_alone(way: str, given: bool) -> None:
    model, ids = patched(way), prompts(length=50)
    assert apart(padded(model, ids, positions=given), model(ids).logits) < TOLERANCE


def test_the_scale_of_logits_is_for_the_layers_without_position_alone() -> None:
    ids = prompts()
    scaled = patched("every second", factor=4, logit_scale="drope", coefficient=0.5)
    factor = 1 + 0.5 * torch.tensor(4.0).log().item()
    native = llama()
    for number in (1, 3):
        native.model.layers[number].self_attn.scaling *= factor
    with by_hand(native, {1, 3}, None):
        expected = native(ids).logits
    assert apart(scaled(ids).logits, expected) < TOLERANCE


def test_a_gradient_is_that_of_the_model_made_by_hand() -> None:
    ids, native = prompts(length=40), llama()
    made = patched("every fourth with a window")
    loss = made(ids, labels=ids).loss
    loss.backward()
    with by_hand(native, {3}, 20):
        native(ids, labels=ids).loss.backward()
    for (name, one), other in zip(made.named_parameters(), native.parameters(), strict=True):
        assert apart(one.grad, other.grad) < 1e-3 * other.grad.abs().max(), name


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_forward_and_static_decoding_compile_to_one_graph() -> None:
    model, ids = patched("every fourth with a window"), prompts(length=60)
    whole = model(ids).logits
    at_once, decoded = compiled(model, ids, 50)
    assert apart(at_once, whole) < TOLERANCE
    assert apart(decoded, whole[:, 50:]) < TOLERANCE


def test_it_is_saved_loaded_and_undone_and_refused_at_export(tmp_path: Path) -> None:
    model, ids = llama(), prompts()
    native = model(ids).logits
    ropescale.patch(model, "nope", every=2, window=20)
    whole = model(ids).logits
    done = ropescale.record(model)
    assert done is not None
    assert done.knobs == {"factor": None, "logit_scale": "none", "coefficient": 0.103, "every": 2, "window": 20}
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(loaded(ids).logits, whole)
    assert torch.equal(ropescale.unpatch(loaded)(ids).logits, native)
    with pytest.raises(ExportError) as refusal:
        canonical(model.config, lossy=True)
    assert str(refusal.value) == (
        "nope: must act in every layer to be exported, got nope(factor=None, logit_scale='none', coefficient=0.103, "
        "every=2, window=20), which leaves 2 of 4 rotating; export it without, or keep it in Transformers with "
        "ropescale.load"
    )
    assert torch.equal(ropescale.unpatch(model)(ids).logits, native)


def test_a_record_of_all_layers_is_what_it_was() -> None:
    done = ropescale.record(ropescale.patch(llama(), "nope"))
    assert done is not None
    assert done.knobs == {"factor": None, "logit_scale": "none", "coefficient": 0.103}
    json.dumps(done.to_dict())


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"every": 0},
        f"nope: every must be a whole number of layers, from 1 to {2**24}, got 0; leave it out for all layers",
    ),
    ({"every": 5}, "nope: every must be at most the number of layers (4), got 5; give less"),
    ({"on": []}, "nope: on must be a list of numbers of layers, from 0, got []; leave it out for all layers"),
    ({"on": 3}, "nope: on must be a list of numbers of layers, from 0, got 3; leave it out for all layers"),
    (
        {"on": [1, 4]},
        "nope: on must number layers that there are, from 0 to 3, got [1, 4]; leave out what is beyond",
    ),
    ({"every": 2, "on": [1]}, "nope: every and on must not be given together, got 2 and [1]; give one"),
    (
        {"window": 20},
        "nope: window must come with every or on, since it is for the layers that go on rotating, got 20; give one of "
        "the two, or leave it out",
    ),
]


def test_layers_are_refused_where_types_of_layers_rotate_apart_or_layers_say_full() -> None:
    with pytest.raises(RopescaleError) as refusal:
        ropescale.patch(family("gemma3_text"), "nope", every=2)
    assert str(refusal.value) == (
        "nope: must act in every layer of a gemma3_text, whose layer types have rotations of their own, got "
        "nope(factor=None, logit_scale='none', coefficient=0.103, every=2); leave out which layers"
    )
    with pytest.raises(RopescaleError) as refusal:
        ropescale.patch(family("gemma2"), "nope", every=2, layers="full")
    assert str(refusal.value) == (
        "layers: must be 'global' or 'all' for nope in some layers, which its knobs say, got 'full'; leave it out"
    )


@pytest.mark.parametrize("name", ["gpt_neox", "smollm3", "phi3"])
def test_layers_are_left_rotating_in_other_families(name: str) -> None:
    ids = prompts(length=40)
    native = family(name)(ids).logits
    one, other = (ropescale.patch(family(name), "nope", on=[1], window=window)(ids).logits for window in (40, 3))
    assert apart(one, native) > 1e-3
    assert apart(one, other) > 1e-3


@pytest.mark.parametrize(("knobs", "message"), WRONG, ids=[str(knobs) for knobs, _ in WRONG])
def test_layers_that_cannot_be_meant_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(RopescaleError) as refusal:
        ropescale.patch(llama(), "nope", **knobs)
    assert str(refusal.value) == message
