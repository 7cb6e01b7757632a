"""Positions that are divided by a factor of its own in each layer, or in each head."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family
from late import ORIGINAL, TOLERANCE, apart, compiled, llama, padded, prompts, unpatched
from late import no_grad as no_grad
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

import ropescale
from ropescale import Geometry, get_method
from ropescale.errors import RopescaleError
from ropescale.injection.forward_pass import ForwardPass, Late
from ropescale.injection.kernels import Call, blockwise, flexible, pairwise
from ropescale.injection.late import LAYOUT, NAME, attention
from ropescale.ranking import head_ranks

REFERENCE = Path(__file__).parents[1] / "reference"
RANKS = [[0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0], [2, 0, 3, 1]]
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "ms_poe": ("ms_poe", {}),
    "ms_poe in all layers": ("ms_poe", {"start": 0, "low": 1.5, "high": 4}),
    "ms_poe by rank": ("ms_poe", {"start": 2, "ranks": [2, 0, 3, 1]}),
    "ms_poe by ranks in each layer": ("ms_poe", {"start": 1, "low": 2, "high": 6, "ranks": RANKS}),
    "lpes": ("lpes", {}),
    "lpes by curve": ("lpes", {"points": [1, 6, 2]}),
    "lpes by list": ("lpes", {"factors": [1, 2.5, 1, 4]}),
}
every_way = pytest.mark.parametrize("way", WAYS)


def factors(way: str) -> list[list[float]]:
    """[layers][heads], worked out by hand for four layers of four heads."""
    own, mean = [[1.0] * 4], [1.2 + 0.15 * rank for rank in range(4)]
    return {
        "ms_poe": [*own, mean, mean, mean],
        "ms_poe in all layers": [[1.5, 2.125, 2.75, 3.375]] * 4,
        "ms_poe by rank": [*own, *own, *[[1.5, 1.2, 1.65, 1.35]] * 2],
        "ms_poe by ranks in each layer": [*own, [3.0, 2.0, 5.0, 4.0], [5.0, 4.0, 3.0, 2.0], [4.0, 2.0, 5.0, 3.0]],
        "lpes": [[one] * 4 for one in (1.2, 1.4, 1.6, 1.8)],
        # (1 - t)^2 + 12 t (1 - t) + 2 t^2 at thirds
        "lpes by curve": [[one] * 4 for one in (1, 4 / 9 + 24 / 9 + 2 / 9, 1 / 9 + 24 / 9 + 8 / 9, 2)],
        "lpes by list": [[one] * 4 for one in (1, 2.5, 1, 4)],
    }[way]


def patched(way: str, model: LlamaForCausalLM | None = None) -> LlamaForCausalLM:
    name, knobs = WAYS[way]
    return ropescale.patch(llama() if model is None else model, name, **knobs)


def ungrouped() -> LlamaForCausalLM:
    """Four layers of four heads, each with keys of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=ORIGINAL, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    return model


@contextmanager
def by_hand(model: LlamaForCausalLM, by_layer: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Llama's own layers, whose function that rotates is one that turns each head by positions of its own."""
    number, standing = [0], [torch.empty(0)]

    def turned(x: Tensor, heads: list[float]) -> Tensor:
        found = []
        for head, factor in enumerate(heads):
            place = standing[0][0] / factor
            angles = torch.outer(place, 10_000.0 ** (-torch.arange(0, 16, 2) / 16))
            wave = torch.polar(torch.ones_like(angles), angles)
            made = torch.complex(x[:, head, :, :8], x[:, head, :, 8:]) * wave
            found.append(torch.cat((made.real, made.imag), dim=-1))
        return torch.stack(found, dim=1)

    def rotated(q: Tensor, k: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        own = by_layer[number[0]]
        number[0] += 1
        return turned(q, own), turned(k, own)

    def begun(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        number[0], standing[0] = 0, torch.arange(kwargs.get("input_ids", args[0] if args else None).shape[1])[None]

    hook = model.model.register_forward_pre_hook(begun, with_kwargs=True)
    with monkeypatch.context() as change:
        change.setattr(modeling_llama, "apply_rotary_pos_emb", rotated)
        yield
    hook.remove()


@every_way
def test_each_head_rotates_as_one_made_by_hand(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, native = prompts(rows=2), ungrouped()
    plain = native(ids).logits
    with by_hand(native, [[1.0] * 4] * 4, monkeypatch):
        assert apart(native(ids).logits, plain) < TOLERANCE
    with by_hand(native, factors(way), monkeypatch):
        expected = native(ids).logits
    assert apart(expected, plain) > 0.1
    assert apart(patched(way, native)(ids).logits, expected) < TOLERANCE


@pytest.mark.parametrize("name", ["ms_poe", "lpes"])
def test_heads_read_what_the_papers_formula_reads(name: str) -> None:
    """At twenty random geometries, in float64 by a program that shares no code with this one; heads in groups."""
    stored = json.loads((REFERENCE / "by_head.json").read_text())
    cases = [case for case in stored if case["method"] == name]
    assert len(cases) == 20
    for case in cases:
        n, width = case["tokens"], case["head_dim"]
        vectors = []
        for number, heads in enumerate((case["heads"], case["key_heads"], case["key_heads"])):
            source = random.Random(case["seed"] + number)
            numbers = [source.gauss(0, 1) for _ in range(heads * n * width)]
            vectors.append(torch.tensor(numbers, dtype=torch.float64).view(1, heads, n, width))
        query, key, value = vectors
        facts = {fact: case[fact] for fact in ("rotary_dim", "head_dim", "theta", "original_length", "layers")}
        method = get_method(name)(**case["knobs"])
        late = Late(name=name, method=method, geometry=Geometry(**facts), heads=case["heads"])
        layer = nn.Module()
        layer.layer_idx, layer.__dict__[LAYOUT] = case["layer"], "half"
        whole = ForwardPass(late, torch.arange(n)[None], 0)
        expected = torch.tensor(case["read"], dtype=torch.float64).transpose(0, 1)
        found, _ = attention(layer, query, key, value, None, **{NAME: whole})
        assert apart(found[0][case["queries"]], expected) < 1e-5
        last = ForwardPass(late, torch.tensor([[n - 1]]), n - 1)
        found, _ = attention(layer, query[:, :, -1:], key, value, None, **{NAME: last})
        assert apart(found[0], expected[-1:]) < 1e-5


@pytest.mark.parametrize("slots", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("place", [0, 5000], ids=["whole cache", "window"])
def test_keys_of_one_query_are_turned_by_their_distances_in_every_layer(slots: int, place: int) -> None:
    geometry = Geometry(rotary_dim=8, theta=50.0, original_length=16, layers=4)
    late = Late(name="ms_poe", method=get_method("ms_poe")(start=0, ranks=RANKS), geometry=geometry, heads=4)
    whole = ForwardPass(late, torch.tensor([[place + slots - 1]]), place + slots - 1)
    steps = torch.arange(1 - slots, 1, dtype=torch.float64)
    for number, ranks in enumerate(RANKS):
        cos, sin = whole.in_layer(number).turns(slots, 0, 1, torch.float32)
        for head, rank in enumerate(ranks):
            for pair in range(4):
                angles = steps * 50.0 ** (-pair / 4) / (1.2 + 0.15 * rank)
                assert apart(cos[0, head, 0, :, pair], angles.cos()) < 1e-5
                assert apart(sin[0, head, 0, :, pair], angles.sin()) < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@every_way
def test_blocks_pairs_and_flex_attention_agree_in_every_layer(way: str) -> None:
    name, knobs = WAYS[way]
    geometry = Geometry(rotary_dim=8, head_dim=12, theta=50.0, original_length=16, layers=4)
    late = Late(name=name, method=get_method(name)(**knobs), geometry=geometry, heads=4)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 70, 12, generator=generator, dtype=torch.float64)
    call = Call(scaling=0.3, layout="half", mask=None, added={}, dropout=0.0, softcap=None, sinks=None)
    whole = ForwardPass(late, torch.arange(70)[None], 0)
    answers = []
    for number in (0, 1, 2, 3, 1):
        own = whole.in_layer(number)
        expected = pairwise(own, query[:, :, None], key, value, call)
        for compute in (blockwise, flexible):
            more = {"compiled": False} if compute is flexible else {}
            found = compute(own, query[:, :, None], key, value, call, **more)
            assert found is not None
            assert apart(found, expected) < 2e-5
        answers.append(expected)
    assert torch.equal(answers[1], answers[4])
    by_layer = factors(way)
    for one in range(4):
        for other in range(one):
            assert (apart(answers[one], answers[other]) > 1e-3) == (by_layer[one] != by_layer[other])


@every_way
@pytest.mark.parametrize("given", [False, True], ids=["without positions", "with positions"])
def test_a_padded_row_reads_as_the_row_alone(way: str, given: bool) -> None:
    model, ids = patched(way), prompts(length=50)
    assert apart(padded(model, ids, positions=given), model(ids).logits) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("lpes", {"points": [1]}), ("lpes", {"factors": [1, 1, 1, 1]}), ("ms_poe", {"low": 1, "high": 1, "start": 0})],
)
def test_factors_of_one_are_the_unpatched_model_to_the_bit(name: str, knobs: dict[str, Any]) -> None:
    ids = prompts(rows=2)
    assert torch.equal(ropescale.patch(llama(), name, **knobs)(ids).logits, unpatched()(ids).logits)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("lpes", {"points": [3]}), ("ms_poe", {"low": 3, "high": 3, "start": 0, "ranks": [3, 1, 2, 0]})],
)
def test_one_factor_for_all_is_linear_interpolation(name: str, knobs: dict[str, Any]) -> None:
    ids = prompts()
    linear = ropescale.patch(llama(), "linear", factor=3)(ids).logits
    assert apart(ropescale.patch(llama(), name, **knobs)(ids).logits, linear) < 1e-4


def test_ranks_of_each_layer_in_one_order_are_that_order() -> None:
    ids, order = prompts(), [2, 0, 3, 1]
    one, other = (ropescale.patch(llama(), "ms_poe", ranks=ranks)(ids).logits for ranks in (order, [order] * 4))
    assert torch.equal(one, other)


def test_a_gradient_is_that_of_the_model_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts(length=40)
    for way in ("ms_poe by ranks in each layer", "lpes by curve"):
        native, made = ungrouped(), patched(way, ungrouped())
        made(ids, labels=ids).loss.backward()
        with by_hand(native, factors(way), monkeypatch):
            native(ids, labels=ids).loss.backward()
        for (name, one), other in zip(made.named_parameters(), native.parameters(), strict=True):
            assert apart(one.grad, other.grad) < 1e-3 * other.grad.abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ms_poe by ranks in each layer", "lpes by curve"])
def test_forward_and_static_decoding_compile_to_one_graph(way: str) -> None:
    model, ids = patched(way), prompts(length=60)
    whole = model(ids).logits
    at_once, decoded = compiled(model, ids, 50)
    assert apart(at_once, whole) < TOLERANCE
    assert apart(decoded, whole[:, 50:]) < TOLERANCE


@every_way
def test_it_is_saved_loaded_and_undone(way: str, tmp_path: Path) -> None:
    model, ids = patched(way), prompts()
    whole, done = model(ids).logits, ropescale.record(model)
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert torch.equal(loaded(ids).logits, whole)
    again = ropescale.record(loaded)
    assert done is not None
    assert again is not None
    assert again.knobs == done.knobs == json.loads(json.dumps(done.knobs))
    assert again.method_instance() == done.method_instance()
    assert torch.equal(ropescale.unpatch(loaded)(ids).logits, unpatched()(ids).logits)


def test_what_the_config_states_is_what_the_least_factor_reaches() -> None:
    reached = {way: ropescale.record(patched(way)).target_length for way in WAYS}
    least = {way: min(map(min, factors(way))) for way in WAYS}
    assert reached == {way: int(least[way] * ORIGINAL) for way in WAYS}
    assert reached["lpes"] == 38
    assert ropescale.record(ropescale.patch(llama(), "lpes", factor=4)).target_length == 4 * ORIGINAL


@pytest.mark.parametrize("name", ["gpt_neox", "phi3", "deepseek_v3"])
def test_other_families_rotate_by_their_own_layouts(name: str) -> None:
    ids = prompts(length=40)
    linear = ropescale.patch(family(name), "linear", factor=2)(ids).logits
    for method, knobs in (("lpes", {"points": [2]}), ("ms_poe", {"low": 2, "high": 2, "start": 0})):
        assert apart(ropescale.patch(family(name), method, **knobs)(ids).logits, linear) < 1e-3
    assert apart(ropescale.patch(family(name), "ms_poe", low=2, high=9, start=1)(ids).logits, linear) > 1e-3


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "lpes",
        {"points": []},
        "lpes: points must be a list of factors at control points, each of at least 1, got []; 1 leaves positions as "
        "they are",
    ),
    (
        "lpes",
        {"points": [1, 0.5]},
        "lpes: points must be a list of factors at control points, each of at least 1, got [1, 0.5]; 1 leaves "
        "positions as they are",
    ),
    (
        "lpes",
        {"factors": 3},
        "lpes: factors must be a list of factors, one for each layer, each of at least 1, got 3; 1 leaves positions "
        "as they are",
    ),
    (
        "lpes",
        {"factors": [1, 2]},
        "lpes: factors must be one for each layer of the model (4), got 2; give points for a curve over all layers",
    ),
    (
        "lpes",
        {"factors": [1, 2, 3, 4], "points": [2, 3]},
        "lpes: points and factors must not be given together, got [2.0, 3.0] and [1.0, 2.0, 3.0, 4.0]; give one",
    ),
    (
        "ms_poe",
        {"low": 0.5},
        "ms_poe: low must be a number of at least 1 and at most 16777216 (1 leaves positions as they are), got 0.5; "
        "`ropescale methods` lists the knobs with their defaults",
    ),
    ("ms_poe", {"low": 2}, "ms_poe: low must be at most high (1.8), got 2; lower low or raise high"),
    (
        "ms_poe",
        {"start": -1},
        "ms_poe: start must be the number of a layer, from 0 to 16777216, got -1; leave it out for the third",
    ),
    ("ms_poe", {"start": 4}, "ms_poe: start must be below the number of layers (4), got 4; give less"),
    *(
        (
            "ms_poe",
            {"ranks": ranks},
            "ms_poe: ranks must hold each number from 0 to below the number of heads once, in one list or in one for "
            f"each layer, got {ranks}; take those of ropescale.ranking.head_ranks",
        )
        for ranks in (3, [], [0, 0, 1, 2], [1, 2, 3, 4], [[0, 1], 2])
    ),
    (
        "ms_poe",
        {"ranks": [1, 0]},
        "ms_poe: ranks must hold one for each head of the queries (4), got 2; take those of "
        "ropescale.ranking.head_ranks",
    ),
    (
        "ms_poe",
        {"ranks": [[0, 1, 2, 3]] * 3},
        "ms_poe: ranks must be one list, or one for each layer of the model (4), got 3; take those of "
        "ropescale.ranking.head_ranks",
    ),
]


@pytest.mark.parametrize(("name", "knobs", "message"), WRONG, ids=[f"{name} {knobs}" for name, knobs, _ in WRONG])
def test_factors_that_cannot_be_meant_are_refused(name: str, knobs: dict[str, Any], message: str) -> None:
    model = llama()
    with pytest.raises(RopescaleError) as refusal:
        ropescale.patch(model, name, **knobs)
    assert str(refusal.value) == message
    assert ropescale.record(model) is None


def test_heads_are_ranked_by_the_outliers_of_their_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Llama's own layers: queries and keys as they come to its rotation, and nothing of the library."""
    ids = torch.cat((prompts(), prompts().flip(1)))
    counted: list[list[float]] = []
    rotated = modeling_llama.apply_rotary_pos_emb

    def count(q: Tensor, k: Tensor, *more: Any, **named: Any) -> Any:
        shares = []
        for head in range(4):
            found = 0
            for row in range(2):
                scores = [float(q[row, head, -1] @ k[row, head // 2, j]) / 4 for j in range(ids.shape[1])]
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
                found += sum(weight > 3 * sum(weights) / len(weights) for weight in weights)
            shares.append(found)
        counted.append(shares)
        return rotated(q, k, *more, **named)

    native = llama()
    with monkeypatch.context() as change:
        change.setattr(modeling_llama, "apply_rotary_pos_emb", count)
        before = native(ids).logits
    expected = [sorted(range(4), key=lambda head: -shares[head]) for shares in counted]
    found = head_ranks(native, ids)
    assert [[ranks.index(place) for place in range(4)] for ranks in found] == expected
    assert len({tuple(ranks) for ranks in found}) > 1
    assert ropescale.record(native) is None
    assert torch.equal(native(ids).logits, before)
    assert ropescale.patch(native, "ms_poe", ranks=found)(ids).logits.isfinite().all()


@pytest.mark.parametrize("given", [torch.arange(5), torch.zeros(1, 0, dtype=torch.long), [[1, 2]]])
def test_what_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(RopescaleError) as refusal:
        head_ranks(llama(), given)
    shown = list(given.shape) if isinstance(given, Tensor) else "list"
    assert str(refusal.value) == (
        f"input_ids: must be token ids of [texts, tokens], got {shown}; tokenize texts of one length"
    )
