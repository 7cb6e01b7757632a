"""Methods that act when attention reads: their definitions, held against released code and papers."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from late import (
    CASES,
    LENGTH,
    added,
    apart,
    every_case,
    llama,
    no_grad,  # noqa: F401  # a fixture of every test here
    prompts,
)
from torch import Tensor
from transformers import (
    LlamaConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

import ropescale
from ropescale import Geometry, get_method
from ropescale.errors import (
    RopescaleError,
)
from ropescale.injection.forward_pass import ForwardPass, Late
from ropescale.injection.kernels import Call, blockwise, pairwise, rotate
from ropescale.methods.score.alibi import alibi_slopes
from ropescale.request import split_knobs

REFERENCE = Path(__file__).parents[1] / "reference"

GEOMETRY = Geometry(rotary_dim=8, theta=100.0, original_length=4096)


def reference() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((REFERENCE / "attention_vectors.json").read_text())
    return loaded


VECTORS = {
    "rerope_w4_L4096": ("rerope", {"window": 4}),
    "leaky_rerope_w4_k4_L4096": ("leaky_rerope", {"window": 4, "stretch": 4}),
    "self_extend_G2_w4_floor": ("self_extend", {"group_size": 2, "window": 4}),
    "self_extend_G2_w4_true_division": ("self_extend", {"group_size": 2, "window": 4, "exact": "division"}),
    "self_extend_G3_w6_true_division": ("self_extend", {"group_size": 3, "window": 6, "exact": "division"}),
    "self_extend_G3_w5_true_division": ("self_extend", {"group_size": 3, "window": 5, "exact": "division"}),
    "dca_chunk6_local1": ("dual_chunk", {"chunk": 6, "local": 1}),
    "string_S10_W3_noduplicate": ("string", {"shift": 10, "window": 3}),
    "lm_infinite_local6_global2": ("lm_infinite", {"local": 6, "sinks": 2, "limit": 6}),
}


@pytest.mark.parametrize("compute", [blockwise, pairwise])
@pytest.mark.parametrize("vector", VECTORS)
def test_outputs_are_those_of_the_authors_code(vector: str, compute: Any) -> None:
    stored = reference()
    q, k, v = (torch.tensor(stored[name], dtype=torch.float32)[None, None] for name in "qkv")
    name, knobs = VECTORS[vector]
    method = get_method(name)(**knobs)
    geometry = dataclasses.replace(GEOMETRY, inv_freq=tuple(stored["inv_freq"]))
    forward_pass = ForwardPass(Late(name=name, method=method, geometry=geometry), torch.arange(24)[None], 0)
    call = Call(scaling=8**-0.5, layout="half", mask=None, added={}, dropout=0.0, softcap=None, sinks=None)
    found = compute(forward_pass, q[:, :, None], k, v, call)[0, 0, 0]
    assert apart(found, torch.tensor(stored["cases"][vector]["output"], dtype=torch.float32)) < 1e-5


@pytest.mark.parametrize("compute", [blockwise, pairwise])
@pytest.mark.parametrize("name", ["dynamic_self_extend", "jet_long", "dpe"])
def test_groups_read_what_the_papers_formula_reads(name: str, compute: Any) -> None:
    """At twenty random geometries, in float64 by a program that shares no code with this one."""
    stored = json.loads((REFERENCE / "grouped.json").read_text())
    cases = [case for case in stored if case["method"] == name]
    assert len(cases) == 20
    for case in cases:
        source = random.Random(case["seed"])
        numbers = [source.gauss(0, 1) for _ in range(3 * case["tokens"] * case["head_dim"])]
        q, k, v = torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1, case["tokens"], case["head_dim"])
        facts = {fact: case[fact] for fact in ("rotary_dim", "head_dim", "theta", "original_length")}
        late = Late(name=name, method=get_method(name)(**case["knobs"]), geometry=Geometry(**facts))
        scaling = case["head_dim"] ** -0.5
        call = Call(scaling=scaling, layout="half", mask=None, added={}, dropout=0.0, softcap=None, sinks=None)
        found = compute(ForwardPass(late, torch.arange(case["tokens"])[None], 0), q[:, :, None], k, v, call)[0, 0, 0]
        assert apart(found[case["queries"]], torch.tensor(case["read"], dtype=torch.float64)) < 1e-5


def test_every_method_with_a_distance_has_its_reference_vector() -> None:
    assert {name for name, _ in VECTORS.values()} >= {
        "dual_chunk", "leaky_rerope", "lm_infinite", "rerope", "self_extend", "string"
    }  # fmt: skip


@every_case
@pytest.mark.parametrize("original", [1, 7, 32])
def test_regions_say_what_the_definition_says(case: str, original: int) -> None:
    name, knobs = CASES[case]
    if name in ("yarn", "longrope"):
        return
    knobs, _ = split_knobs(knobs)
    method = get_method(name)(**knobs)
    geometry = Geometry(rotary_dim=16, theta=1e4, original_length=original)
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    distance, visible = method.distance(geometry, query, key)
    inv_freq, factor = method.spectra(geometry, query[:, 0])
    angles = method.angles(geometry, query, key, distance, inv_freq)
    regions = method.regions(geometry, LENGTH)
    if regions is None:
        assert knobs.get("growth") == "exact"
        return
    times = torch.zeros(LENGTH, LENGTH)
    for region in regions:
        inside = (region.start(query) <= key) & (key < region.stop(query))
        times += inside
        seen = region.query(query) - region.key(key)
        turned = (seen if seen.dim() > 2 else seen[..., None]).float() * region.spectrum.inv_freq
        assert torch.allclose(turned.broadcast_to(angles.shape)[inside], angles[inside], atol=1e-4)
        rows = inside.any(1)
        assert (inv_freq[rows] == region.spectrum.inv_freq).all()
        assert torch.allclose(factor[rows], torch.tensor(region.spectrum.attention_factor))
    assert torch.equal(times, (visible & (key <= query)).float())


@pytest.mark.parametrize("length", [4096, 5000, 16384, 40000])
def test_the_scale_of_a_length_is_the_papers(length: int) -> None:
    geometry = Geometry(rotary_dim=64, theta=1e4, original_length=4096)
    scale = length / 4096
    for dynamic, fixed in (("dynamic_linear", "linear"), ("dynamic_ntk", "ntk"), ("dynamic_yarn", "yarn")):
        found = get_method(dynamic)().spectrum(geometry, length=length)
        expected = get_method(fixed)(factor=scale).spectrum(geometry)
        assert torch.allclose(found.inv_freq, expected.inv_freq, rtol=1e-6)
        assert found.attention_factor == pytest.approx(expected.attention_factor, abs=1e-9)


def test_the_scale_of_a_query_is_the_power_of_two_that_holds_it() -> None:
    method = get_method("dynamic_linear")()
    geometry = Geometry(rotary_dim=4, theta=1e4, original_length=32)
    inv_freq, _ = method.spectra(geometry, torch.tensor([0, 31, 32, 63, 64, 127, 128]))
    base = method.base_spectrum(geometry).inv_freq
    assert torch.allclose((base / inv_freq)[:, 0], torch.tensor([1.0, 1, 2, 2, 4, 4, 8]))


def test_transformers_own_formula_is_alpha() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config = LlamaConfig(head_dim=64, max_position_embeddings=2048, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=6000)
    geometry = Geometry(rotary_dim=64, theta=1e4, original_length=2048)
    ours = get_method("dynamic_ntk")(alpha=4).spectrum(geometry, length=6000)
    assert torch.allclose(ours.inv_freq, theirs, rtol=2e-6)


def test_alibi_is_that_of_bloom_and_the_reference() -> None:
    slopes = json.loads((REFERENCE / "position_families.json").read_text())["others"]["alibi_slopes"]
    for heads, expected in slopes.items():
        assert alibi_slopes(int(heads)) == pytest.approx(expected, abs=1e-12)
        theirs = build_alibi_tensor(torch.ones(1, 9), int(heads), torch.float32).view(int(heads), 9)
        distance = torch.tensor([[8]]) - torch.arange(9)[None]
        ours = get_method("alibi")().bias(GEOMETRY, distance, int(heads), {})
        assert apart(ours[:, 0] - ours[:, 0, :1], theirs - theirs[:, :1]) < 1e-6


def test_layouts_are_the_complex_form() -> None:
    """The original Llama code turns pairs as complex numbers, adjacent elements being one."""
    torch.manual_seed(0)
    x, angles = torch.randn(5, 8), torch.randn(5, 4)
    turned = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones(5, 4), angles))
    assert apart(rotate(x, angles.cos(), angles.sin(), "interleaved"), turned.flatten(-2)) < 1e-6
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    assert apart(rotate(x[:, order], angles.cos(), angles.sin(), "half"), turned.flatten(-2)[:, order]) < 1e-6
    rest = torch.randn(5, 3)
    for layout, some in (("interleaved", torch.arange(8)), ("half", order)):
        found = rotate(torch.cat((rest, x[:, some]), dim=-1), angles.cos(), angles.sin(), f"{layout} at the end")
        assert apart(found, torch.cat((rest, turned.flatten(-2)[:, some]), dim=-1)) < 1e-6


def test_t5_is_that_of_transformers() -> None:
    method = get_method("t5")()
    stored = json.loads((REFERENCE / "position_families.json").read_text())["others"]["t5_bucket_causal_32_128"]
    assert {key: int(method.bucket(torch.tensor(int(key)))) for key in stored} == stored
    distances = torch.arange(400)
    theirs = T5Attention._relative_position_bucket(-distances, bidirectional=False, num_buckets=32, max_distance=128)
    assert torch.equal(method.bucket(distances), theirs)
    table = torch.randn(32, 3)
    bias = method.bias(GEOMETRY, distances[None, :], 3, {"table": table})
    assert torch.equal(bias[:, 0], table[theirs].T)


def test_cope_is_that_of_the_reference() -> None:
    stored = json.loads((REFERENCE / "position_families.json").read_text())["others"]["cope_example"]
    q, k, vectors = (torch.tensor(stored[name]) for name in ("q", "k", "pos_emb"))
    seen = torch.ones(len(q), len(k)).tril().bool()
    raw = q @ k.T
    scores = raw.masked_fill(~seen, torch.finfo(torch.float32).min)
    bias = get_method("cope")(npos_max=vectors.shape[1]).content_bias(q, 1.0, scores, scores, {"vectors": vectors})
    expected = torch.tensor([[0.0 if value is None else value for value in row] for row in stored["logits"]])
    assert apart((raw + bias)[seen], expected[seen]) < 1e-5


def test_sinusoids_are_those_of_the_reference() -> None:
    stored = json.loads((REFERENCE / "position_families.json").read_text())["others"]["sinusoidal_d8"]
    found = get_method("sinusoidal")().embedding(torch.tensor([int(p) for p in stored]), 8, {})
    assert apart(found, torch.tensor(list(stored.values()))) < 1e-6


def test_shaw_is_the_definition() -> None:
    """Equations 3 and 4: e_ij = q_i (k_j + a^K_ij) / sqrt(d), z_i = sum_j w_ij (v_j + a^V_ij)."""
    torch.manual_seed(0)
    n, width, clip = 9, 4, 3
    q, k, v = torch.randn(3, n, width)
    keys, values = torch.randn(2, clip + 1, width)
    index = (torch.arange(n)[:, None] - torch.arange(n)[None]).clamp(0, clip)
    scores = torch.einsum("id,ijd->ij", q, k[None] + keys[index]) / width**0.5
    weights = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("ij,ijd->id", weights, v[None] + values[index])
    method = get_method("shaw")(clip=clip)
    late = Late(name="shaw", method=method, geometry=dataclasses.replace(GEOMETRY, rotary_dim=4, head_dim=4))
    call = Call(
        scaling=width**-0.5,
        layout="half",
        mask=None,
        added={"key_vectors": keys, "value_vectors": values},
        dropout=0.0,
        softcap=None,
        sinks=None,
    )
    for compute in (blockwise, pairwise):
        forward_pass = ForwardPass(late, torch.arange(n)[None], 0)
        found = compute(forward_pass, q[None, None, None], k[None, None], v[None, None], call)
        assert apart(found[0, 0, 0], expected) < 1e-5


def test_learned_positions_end_in_words() -> None:
    model = ropescale.patch(llama(), "learned", max_length=20)
    assert model.config.max_position_embeddings == 20
    with pytest.raises(RopescaleError) as refusal:
        model(prompts(length=21))
    assert str(refusal.value) == (
        "learned: max_length must be above every position, got 20 for position 20; patch with a larger max_length, "
        "or read a shorter text"
    )


@pytest.mark.parametrize("name", ["t5", "shaw", "cope", "learned"])
def test_gradient_reaches_added_parameters_which_begin_alike(name: str) -> None:
    knobs = {"max_length": 128} if name == "learned" else {}
    one, other = (ropescale.patch(llama(), name, **knobs) for _ in range(2))
    assert added(one)
    assert all(torch.equal(a, b) for a, b in zip(added(one).values(), added(other).values(), strict=True))
    assert len(added(one)) == {"t5": 1, "learned": 1, "shaw": 8, "cope": 4}[name]
    one(prompts()).logits.square().mean().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in added(one).values())


def test_the_unscaled_prefix_of_longrope_is_the_papers() -> None:
    """Equation 3: a position below the prefix keeps its angle, every other one has it divided by its stretch."""
    torch.manual_seed(0)
    n, prefix, original = 24, 5, 12
    short, long = [1.0, 1.5, 2.0, 3.0], [1.0, 2.0, 4.0, 6.0]
    method = get_method("longrope")(
        factor=4, short_factor=short, long_factor=long, unscaled_prefix=prefix, attention_factor=1.2
    )
    geometry = Geometry(rotary_dim=8, theta=100.0, original_length=original)
    base = method.spectrum(dataclasses.replace(geometry), n).inv_freq * torch.tensor(long)
    q, k, v = torch.randn(3, n, 8)

    def turned(x: Tensor, position: int, query: int) -> Tensor:
        stretch = torch.tensor(short if query < original else long)
        angle = position * base / (1 if position < prefix else stretch)
        return rotate(x, angle.cos() * 1.2, angle.sin() * 1.2, "half")

    scores = (
        torch.stack([torch.stack([turned(q[i], i, i) @ turned(k[j], j, i) for j in range(n)]) for i in range(n)])
        / 8**0.5
    )
    expected = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1) @ v
    late = Late(name="longrope", method=method.when_read(geometry), geometry=geometry)
    call = Call(scaling=8**-0.5, layout="half", mask=None, added={}, dropout=0.0, softcap=None, sinks=None)
    for compute in (blockwise, pairwise):
        forward_pass = ForwardPass(late, torch.arange(n)[None], 0)
        found = compute(forward_pass, q[None, None, None], k[None, None], v[None, None], call)
        assert apart(found[0, 0, 0], expected) < 1e-5
