"""The mathematics of rotary scores, against references and against what can be said by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from explaining import PLAIN, TINY
from torch import Tensor

from ropescale import Geometry, get_method, list_methods
from ropescale.errors import InvalidArgumentError
from ropescale.explain import readings, theory
from ropescale.methods.late import LateMethod, Sizes

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "reference" / "position_families.json").read_text()
)


THEORY = REFERENCE["theory"]


def geometry(d: int, base: float, length: int = 4096) -> Geometry:
    return Geometry(rotary_dim=d, theta=base, original_length=length)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_plain_methods_are_all_but_those_with_a_knob_to_give():
    assert set(list_methods()) - set(PLAIN) == {"abf", "learned", "longrope", "proportional"}


@pytest.mark.parametrize("case", THEORY["B"], ids=lambda case: str(case["m"]))
def test_similarity_is_the_reference(case):
    found = theory.similarity(geometry(case["d"], case["base"]), torch.tensor([case["m"]]))
    assert float(found) == pytest.approx(case["B"], abs=1e-10)


def test_similarity_is_the_same_in_parts_and_one_by_one():
    distances = torch.tensor([0, 5, 4095, 4096, 4097, 9000])
    all_of_them = theory.similarity(geometry(64, 1e4), torch.arange(9001))
    assert torch.equal(theory.similarity(geometry(64, 1e4), distances), all_of_them[distances])


@pytest.mark.parametrize("case", THEORY["context_length_bound"], ids=lambda case: f"{case['d']}-{case['base']:g}")
def test_the_first_negative_distance_comes_after_the_longest_valid_length(case):
    assert theory.first_negative(geometry(case["d"], case["base"]), 40_000) == case["L_bound"] + 1


@pytest.mark.parametrize(
    ("base", "distance"), REFERENCE["base_bound_reproduction"]["first_violation_d128"].items(), ids=str
)
def test_the_first_negative_distance_of_the_bases_that_were_reproduced(base, distance):
    """Among them larger bases that fail earlier: a lower bound on the base would miss these."""
    assert theory.first_negative(geometry(128, float(base)), distance) == distance
    assert theory.first_negative(geometry(128, float(base)), distance - 1) is None


@pytest.mark.parametrize(
    "case", THEORY["critical_dimension"], ids=lambda case: f"{case['d']}-{case['base']:g}-{case['L']}"
)
def test_the_critical_pair_is_the_reference(case):
    model = geometry(case["d"], case["base"], case["L"])
    assert theory.critical_pair(model) == case["pair"] == case["d_crit"] // 2
    assert theory.pairs_without_a_turn(model) == list(range(case["pair"], model.pairs))


def test_a_model_whose_pairs_all_turn_has_no_critical_pair():
    model = geometry(8, 10.0, 4096)
    assert theory.pairs_without_a_turn(model) == []
    assert theory.critical_pair(model) == model.pairs


def test_a_pair_that_turns_exactly_once_completes_its_turn():
    model = Geometry(rotary_dim=4, theta=1e4, original_length=128, inv_freq=(1.0, 2 * math.pi / 128))
    slower = dataclasses.replace(model, inv_freq=(1.0, 2 * math.pi / 128.001))
    assert theory.pairs_without_a_turn(model) == []
    assert theory.pairs_without_a_turn(slower) == [1]


def test_the_bound_of_the_decay_by_hand():
    inv_freq = torch.tensor([math.pi, math.pi / 2])
    # partial sums at distance 1: e^(i pi) = -1, then -1 + i
    expected = [(1 + 2) / 2, (1 + math.sqrt(2)) / 2]
    assert theory.decay_bound(inv_freq.double(), torch.tensor([0, 1])).tolist() == pytest.approx(expected, abs=1e-7)


def test_the_bound_of_the_decay_bounds_scores():
    """|score| <= pairs * bound * the largest step between the pairs' complex products (RoFormer, equation 37)."""
    model, distances = geometry(64, 1e4), torch.arange(2000)
    q, k = random(2, 64)
    products = torch.complex(q[:32], q[32:]) * torch.complex(k[:32], -k[32:])
    step = torch.cat((products, torch.zeros(1))).diff().abs().max()
    score = theory.modulation(model, q, k, distances, torch.zeros_like(distances)).score
    assert bool((score.abs() <= step * theory.decay_bound(model, distances) * model.pairs).all())
    assert not bool((score.abs() <= 0.02 * step * theory.decay_bound(model, distances) * model.pairs).all())


def test_a_rotary_score_is_its_two_parts():
    model, n = geometry(128, 5e5), 3000
    q, k = random(2, 128)
    here = torch.full((n,), 8000)
    found = theory.modulation(model, q, k, here, here - torch.arange(n))
    assert found.error < 1e-10  # of terms of about 1, at positions where float64 is exact to 1e-12
    assert float(found.sine.abs().max()) > 1  # neither part is idle
    assert float((found.cosine - (q * k).sum()).abs().max()) > 1


def test_a_rotary_score_depends_on_the_distance_alone():
    q, k = random(2, 32)
    near = theory.modulation(TINY, q, k, torch.tensor([7]), torch.tensor([3]))
    far = theory.modulation(TINY, q, k, torch.tensor([1007]), torch.tensor([1003]))
    assert float(near.score) == pytest.approx(float(far.score), abs=1e-11)


def test_a_turn_is_that_of_the_reference():
    case = REFERENCE["layout_check"]
    model = geometry(case["d"], case["base"])
    half = torch.tensor(case["x_interleaved"], dtype=torch.float64)[case["perm"]]
    expected = torch.tensor(case["y_interleaved"], dtype=torch.float64)[case["perm"]]
    found = theory.at_positions(model, half, torch.tensor([case["position"]]))[0]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-15)


def test_a_turn_keeps_norms():
    vectors, positions = random(500, 128), torch.arange(500) * 250
    assert theory.norm_error(geometry(128, 1e4), vectors, positions) < 1e-15
    assert 1e-9 < theory.norm_error(geometry(128, 1e4), vectors.float(), positions) < 1e-6


def test_sinusoidal_vectors_are_the_reference():
    expected = REFERENCE["others"]["sinusoidal_d8"]
    found = theory.sinusoidal(torch.tensor([int(position) for position in expected]), 8)
    assert found.flatten().tolist() == pytest.approx([x for row in expected.values() for x in row], abs=1e-14)


def test_an_additive_score_is_its_four_terms():
    x, y = random(2, 64)
    here = torch.full((300,), 400)
    found = theory.addition(x, y, here, here - torch.arange(300))
    elsewhere = theory.addition(x, y, here + 100, here + 100 - torch.arange(300))
    assert found.error < 1e-12
    # the term of the positions alone knows the distance only, the mixed ones know where they stand
    assert float((found.position - elsewhere.position).abs().max()) < 1e-11
    assert float((found.content_position - elsewhere.content_position).abs().max()) > 1
    assert float(found.position[0]) == pytest.approx(32, abs=1e-12)


def test_the_score_of_ones_is_the_expected_score_of_random_vectors():
    distances = torch.tensor([0, 3, 40, 300])
    model = dataclasses.replace(TINY, head_dim=48)  # a third of the head does not rotate
    ours = theory.view(None, model, length=512, distances=distances).score
    vectors = random(20_000, 48)
    scores = torch.stack(
        [
            (vectors[:, :32] * theory.at_positions(model, vectors[:, :32], torch.full((20_000,), int(m)))).sum(-1)
            + (vectors[:, 32:] ** 2).sum(-1)
            for m in distances
        ]
    ) / math.sqrt(48)
    error = 5 * scores.std(dim=1) / math.sqrt(20_000)
    assert bool(((scores.mean(dim=1) - ours).abs() < error).all())


@pytest.mark.parametrize("name", PLAIN)
def test_the_view_of_a_method_is_what_its_parts_say(name):
    """The score of ones through the definition that attention computes with, pair by pair."""
    method = get_method(name)(factor=4.0)
    distances = torch.arange(512)
    found = theory.view(method, TINY, length=512, distances=distances, heads=4)
    if isinstance(method, LateMethod):
        query, keys = torch.tensor([[511]]), 511 - distances[None]
        seen, visible = method.distance(TINY, query[..., None], keys[:, None])
        inv_freq, factor = method.spectra(TINY, query)
        scale = method.query_scale(TINY, query)
        learned = method.added(TINY, Sizes(heads=4, head_dim=32, value_dim=32, hidden=128))
        bias = method.bias(TINY, distances[None], 4, learned)
        angles = method.angles(TINY, query[..., None], keys[:, None], seen, inv_freq.double())[0, 0]
        angles = angles / {"lpes": 1.2, "ms_poe": 1.2}.get(name, 1.0)  # of the head that is changed least
    else:
        spectrum = method.spectrum(TINY)
        seen, visible = distances[None, None], torch.ones(1, 1, 512, dtype=torch.bool)
        inv_freq, factor = spectrum.inv_freq[None, None], torch.tensor([[spectrum.attention_factor]])
        scale = bias = None
        angles = seen[0, 0].double()[:, None] * inv_freq[0, 0].double()
    score = 2 * float(factor) ** 2 * angles.cos().sum(-1) / math.sqrt(32)
    score = score * (1.0 if scale is None else float(scale))
    score = score if bias is None else score + bias.amax(dim=0)[0]
    assert torch.equal(found.visible, visible[0, 0])
    assert torch.equal(found.seen, seen[0, 0].double())
    assert float((found.score - score).abs().max()) < 1e-5
    assert found.biased == (name == "alibi")  # what t5 adds begins at zero


def test_the_view_without_a_method_is_the_model_s_own():
    found = theory.view(None, TINY, length=300, distances=torch.arange(300))
    assert torch.equal(found.seen, torch.arange(300).double())
    assert bool(found.visible.all())
    # the frequencies are those of a model, which are float32
    assert found.inv_freq.tolist() == pytest.approx(theory.frequencies(TINY).tolist(), rel=1e-6)
    expected = 2 * theory.similarity(found.inv_freq, torch.arange(300)) / math.sqrt(32)
    assert float((found.score - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: theory.frequencies(torch.ones(2, 2)),
            "inv_freq: must be a Geometry or a floating tensor with one entry per pair, got torch.float32 of shape "
            "(2, 2); take the inv_freq of a Spectrum",
        ),
        (
            lambda: theory.similarity([1.0], torch.arange(3)),
            "inv_freq: must be a Geometry or a floating tensor with one entry per pair, got list; take the inv_freq "
            "of a Spectrum",
        ),
        (
            lambda: theory.first_negative(TINY, -1),
            "limit: must be a whole number of tokens from 0 to 16777216, got -1; give the longest distance of "
            "interest",
        ),
        (
            lambda: theory.view(None, TINY, length=8, distances=torch.arange(9)),
            "distances: must be from 0 to below the length (8), got 0 to 8; give a longer context",
        ),
        (
            lambda: theory.at_positions(TINY, torch.ones(30), torch.arange(3)),
            "vectors: must have two elements for each of 16 pairs, got 30; give the rotated elements of one head",
        ),
        (
            lambda: theory.sinusoidal(torch.arange(3), 7),
            "width: must be even and above 0, since a sine and a cosine go together, got 7; give the elements of a "
            "token's vector",
        ),
        (
            lambda: readings.readings(TINY, [], length=1),
            "length: must be a whole number of tokens from 2 to 16777216, got 1; give the context length of interest",
        ),
    ],
)
def test_a_wrong_argument_is_one_sentence(wrong, message):
    with pytest.raises(InvalidArgumentError) as caught:
        wrong()
    assert str(caught.value) == message
