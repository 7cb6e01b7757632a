"""Methods that act when attention reads: definitions, reference vectors, caches, batches, saving, families."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LATE, NAMES, OLDER, config_of, family, fingerprint, logits, model_of, wants
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    StaticCache,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

import ropescale
from ropescale import Geometry, get_method
from ropescale.checkpoint import added_parameters
from ropescale.errors import (
    AlreadyScaledError,
    CheckpointError,
    RopescaleError,
    UnsupportedModelError,
    VerificationError,
)
from ropescale.injection.forward_pass import ForwardPass, Late
from ropescale.injection.kernels import Call, blockwise, pairwise, rotate
from ropescale.injection.late import implementations
from ropescale.methods.late import LateMethod
from ropescale.methods.score.alibi import alibi_slopes

REFERENCE = Path(__file__).parents[1] / "reference"
ORIGINAL = 32  # tokens that the model of these tests was pretrained for
LENGTH = 90  # tokens that it reads
TOLERANCE = 5e-4  # of a logit; the unpatched model's cached and uncached decoding differ by 1e-4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"max_length": 128} if name == "learned" else {}) for name in LATE},
    "dynamic_ntk by alpha": ("dynamic_ntk", {"alpha": 4}),
    "dynamic_yarn exact": ("dynamic_yarn", {"growth": "exact"}),
    "dynamic_yarn with a ceiling": ("dynamic_yarn", {"factor": 2}),
    "self_extend by division": ("self_extend", {"group_size": 3, "window": 10, "exact": "division"}),
    "lm_infinite with a near limit": ("lm_infinite", {"local": 20, "limit": 8, "sinks": 3}),
    "lm_infinite with a far limit": ("lm_infinite", {"local": 9, "limit": 25, "sinks": 3}),
    "dual_chunk of odd sizes": ("dual_chunk", {"chunk": 13, "local": 4}),
    "dual_chunk with a wide border": ("dual_chunk", {"chunk": 13, "local": 9, "attention_factor": 1.1}),
    "string with its code's factor": ("string", {"attention_factor": 1.0693}),
    "nope with DroPE's scale": ("nope", {"factor": 4, "logit_scale": "drope"}),
    "yarn with log_n": ("yarn", {"factor": 2, "log_n": True}),
    "rerope with log_n": ("rerope", {"log_n": True}),
    "longrope with two lists": (
        "longrope",
        {
            "factor": 4,
            "long_factor": [1 + pair / 2 for pair in range(8)],
            "short_factor": [1 + pair / 9 for pair in range(8)],
        },
    ),
}
CASES["longrope with a prefix"] = ("longrope", {**CASES["longrope with two lists"][1], "unscaled_prefix": 7})
every_case = pytest.mark.parametrize("case", CASES)


def llama() -> LlamaForCausalLM:
    """Four layers with weights so large that a wrong definition errs by whole logits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=ORIGINAL,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


@cache
def unpatched() -> LlamaForCausalLM:
    return llama()


def patched(case: str) -> LlamaForCausalLM:
    """A patched model whose added parameters are drawn large enough to show.

    CoPE multiplies what rounding does to a gate by its vectors, layer after layer: in float32 such a model is off by
    1e-3 of a logit between any two orders of summation. It is compared in float64, where only the softmax rounds.
    """
    name, knobs = CASES[case]
    model = ropescale.patch(llama(), name, **knobs)
    model = model.double() if name == "cope" else model
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in added(model).values():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def added(model: LlamaForCausalLM) -> dict[str, torch.nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if ".ropescale." in name}


CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def over(past: Any) -> dict[str, Any]:
    """The keyword by which this version of Transformers takes a cache."""
    return {CACHE: past}


def prompts(rows: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def read(model: LlamaForCausalLM, pieces: Any, past: Any, **given: Any) -> Tensor:
    """Logits of all pieces, one after another over a cache."""
    return torch.cat([model(piece, **over(past), **given).logits for piece in pieces], dim=1)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.fixture(autouse=True)
def no_grad(request: pytest.FixtureRequest) -> Any:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


# definitions

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
    knobs = {knob: value for knob, value in knobs.items() if knob != "log_n"}
    method = get_method(name)(**knobs)
    geometry = Geometry(rotary_dim=16, theta=1e4, original_length=original)
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    distance, visible = method.distance(geometry, query, key)
    inv_freq, factor = method.spectra(geometry, query[:, 0])
    regions = method.regions(geometry, LENGTH)
    if regions is None:
        assert knobs.get("growth") == "exact"
        return
    times = torch.zeros(LENGTH, LENGTH)
    for region in regions:
        inside = (region.start(query) <= key) & (key < region.stop(query))
        times += inside
        seen = (region.query(query) - region.key(key)).broadcast_to(inside.shape)
        assert torch.allclose(seen[inside].float(), distance.broadcast_to(inside.shape)[inside].float(), atol=1e-4)
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


# caches and batches


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


@every_case
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


@pytest.mark.parametrize("case", ["dynamic_linear", "dynamic_ntk", "dynamic_yarn", "lm_infinite", "streaming"])
def test_inside_the_original_length_nothing_changes(case: str) -> None:
    ids = prompts()
    native = unpatched()(ids).logits
    found = patched(case)(ids).logits
    assert apart(found[:, :ORIGINAL], native[:, :ORIGINAL]) < 1e-4
    assert apart(found[:, ORIGINAL:], native[:, ORIGINAL:]) > 1


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


@every_case
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


LENGTHS = (60, 47, 21)  # of the rows of a padded batch


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Rows of unlike lengths and their mask."""
    ids = prompts(rows=3, length=60)
    rows, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, length in enumerate(LENGTHS):
        begin = {"left": 60 - length, "right": 0, "both": (60 - length) // 2}[side]
        rows[number, begin : begin + length] = ids[number, :length]
        mask[number, begin : begin + length] = 1
    return rows, mask


def apart_from_rows_alone(found: Tensor, model: LlamaForCausalLM, rows: Tensor, mask: Tensor) -> float:
    return max(
        apart(got[real.bool()], model(row[real.bool()][None]).logits[0])
        for got, row, real in zip(found, rows, mask, strict=True)
    )


@every_case
def test_padding_without_positions_moves_nothing(case: str) -> None:
    """Reward models, embeddings and log-probabilities send a mask and no positions."""
    model = patched(case)
    for side in ("left", "right", "both"):
        rows, mask = padded(side)
        found = model(rows, attention_mask=mask).logits
        assert apart_from_rows_alone(found, model, rows, mask) < TOLERANCE
        room = torch.cat((mask, torch.ones(3, 7, dtype=torch.long)), dim=1)
        for past in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=67)):
            static = isinstance(past, StaticCache)
            pieces = [
                model(rows[:, low:high], attention_mask=room if static else mask[:, :high], **over(past)).logits
                for low, high in ((0, 15), (15, 58), (58, 59), (59, 60))
            ]
            assert apart_from_rows_alone(torch.cat(pieces, dim=1), model, rows, mask) < TOLERANCE


@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", "dual_chunk", "learned", "sinusoidal", "cope"])
def test_text_goes_on_after_padding_on_the_right(case: str) -> None:
    """Cached padding stands between neighbours; with positions as generation gives them, and without."""
    model = patched(case)
    rows, mask = padded("right")
    more = prompts(rows=3, length=6).flip(0)
    rows, mask = torch.cat((rows, more), dim=1), torch.cat((mask, torch.ones_like(more)), dim=1)
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    for given in (False, True):
        for past in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=66)):
            pieces = [
                model(
                    rows[:, low:high],
                    attention_mask=mask[:, :high],
                    **({"position_ids": positions[:, low:high]} if given else {}),
                    **over(past),
                ).logits
                for low, high in ((0, 60), (60, 64), (64, 65), (65, 66))
            ]
            assert apart_from_rows_alone(torch.cat(pieces, dim=1), model, rows, mask) < TOLERANCE


@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}])
def test_generation_from_padded_rows_is_that_from_each_alone(way: dict[str, str]) -> None:
    model = patched("self_extend")
    rows, mask = padded("left")
    common = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = model.generate(rows, attention_mask=mask, **common, **way)[:, 60:]
    for got, row, real in zip(found, rows, mask, strict=True):
        alone = row[real.bool()][None]
        expected = model.generate(alone, attention_mask=torch.ones_like(alone), **common)
        assert torch.equal(got, expected[0, alone.shape[1] :])


@pytest.mark.parametrize("static", [False, True])
def test_positions_that_start_again_after_cached_padding_are_refused(static: bool) -> None:
    """As generation counts on from padding on the right: where cached keys stand is then unknown."""
    model = patched("self_extend")
    rows, mask = padded("right")
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    past = StaticCache(config=model.config, max_cache_len=66) if static else DynamicCache(config=model.config)
    model(rows, attention_mask=mask, position_ids=positions, **over(past))
    longer = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), dim=1)
    square = torch.nn.functional.pad(longer, (0, 5)).bool()[:, None, None, :]
    with pytest.raises(RopescaleError) as refusal:
        model(
            rows[:, :1],
            attention_mask=square if static else longer,
            position_ids=positions[:, -1:] + 1,
            **over(past),
        )
    assert str(refusal.value) == (
        "position_ids: must count the tokens that the mask shows with self_extend, over a cache with padding between "
        "them, got others; pad on the left, or leave position_ids out"
    )


def test_masks_of_four_dimensions_are_read_or_refused() -> None:
    model = patched("self_extend")
    rows, mask = padded("left")
    seen = torch.ones(60, 60, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    lowest = torch.finfo(torch.float32).min
    for square in (seen, torch.zeros(3, 1, 60, 60).masked_fill(~seen, lowest)):
        found = model(rows, attention_mask=square).logits
        assert apart_from_rows_alone(found, model, rows, mask) < TOLERANCE
    past = DynamicCache(config=model.config)
    model(rows[:, :59], attention_mask=mask[:, :59], **over(past))
    with pytest.raises(RopescaleError) as refusal:
        model(rows[:, 59:], attention_mask=seen[:, :, 59:], **over(past))
    assert str(refusal.value) == (
        "position_ids: must be given with self_extend over a cache where a mask of four dimensions hides cached "
        "tokens, got none; give position_ids, or a mask of [batch, tokens]"
    )


def test_a_mask_that_leaves_out_cached_tokens_is_refused() -> None:
    model, ids = patched("self_extend"), prompts(length=20)
    past = DynamicCache(config=model.config)
    model(ids[:, :15], **over(past))
    with pytest.raises(RopescaleError) as refusal:
        model(ids[:, 15:], attention_mask=torch.ones(1, 5, dtype=torch.long), **over(past))
    assert str(refusal.value) == (
        "attention_mask: must cover the cached tokens and the new ones with self_extend, got 5 of 20; give a mask of "
        "[batch, 20], or leave it out"
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", "yarn with log_n"])
def test_a_classifier_scores_a_padded_row_as_the_row_alone(case: str, side: str) -> None:
    config = copy.deepcopy(unpatched().config)
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(unpatched().model.state_dict())
    name, knobs = CASES[case]
    ropescale.patch(model, name, **knobs)
    rows, mask = padded(side)
    found = model(rows, attention_mask=mask).logits
    for score, row, real in zip(found, rows, mask, strict=True):
        assert apart(score, model(row[real.bool()][None]).logits[0]) < TOLERANCE


@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", "learned"])
def test_padded_rows_compile_to_one_graph(case: str) -> None:
    model = patched(case)
    rows, mask = padded("left")
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    found = compiled(rows, attention_mask=mask, use_cache=False).logits
    assert apart_from_rows_alone(found, model, rows, mask) < TOLERANCE
    past = StaticCache(config=model.config, max_cache_len=60)
    pieces = [model(rows[:, :57], attention_mask=mask[:, :57], **over(past)).logits]
    pieces += [compiled(rows[:, at : at + 1], attention_mask=mask, **over(past)).logits for at in range(57, 60)]
    assert apart_from_rows_alone(torch.cat(pieces, dim=1), model, rows, mask) < TOLERANCE


def test_undoing_puts_back_the_attention_function_of_each_part_of_a_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Transformers writes it into all of them, and parts may have named none."""
    model = llama()
    monkeypatch.setattr(LlamaConfig, "sub_configs", {"part": LlamaConfig})
    model.config.part = LlamaConfig()
    before = [(id(part), name) for part, name in implementations(model.config)]
    assert [name for _, name in before] == ["sdpa", None]
    ropescale.patch(model, "self_extend")
    ropescale.unpatch(model)
    assert [(id(part), name) for part, name in implementations(model.config)] == before


# in and out, on disk


@every_case
def test_undoing_brings_every_bit_back(case: str) -> None:
    model, ids = llama(), prompts(length=40)
    before, config, native = fingerprint(model), model.config.to_dict(), model(ids).logits
    name, knobs = CASES[case]
    with ropescale.patched(model, name, **knobs):
        assert {key: value for key, value in fingerprint(model).items() if ".ropescale." not in key} == before
        assert apart(copy.deepcopy(model)(ids).logits, model(ids).logits) == 0
    assert torch.equal(model(ids).logits, native)
    assert model.config.to_dict() == config
    assert fingerprint(model) == before


@every_case
@pytest.mark.parametrize("used", ["before a forward", "after a forward"])
def test_a_pickled_model_is_patched_and_undoable(case: str, used: str) -> None:
    model, ids = patched(case), prompts(length=40)
    if used == "after a forward":
        model(ids)
    traveller = pickle.loads(pickle.dumps(model))
    assert torch.equal(traveller(ids).logits, model(ids).logits)
    assert torch.equal(copy.deepcopy(traveller)(ids).logits, model(ids).logits)
    assert ropescale.record(traveller) == ropescale.record(model)
    native = ropescale.unpatch(traveller)(ids).logits
    assert torch.equal(native, ropescale.unpatch(model)(ids).logits)
    assert not traveller.model._forward_pre_hooks


@every_case
def test_a_saved_model_comes_back_patched_and_undoable(case: str, tmp_path: Path) -> None:
    model, ids = patched(case), prompts()
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert ropescale.record(loaded) == ropescale.record(model)
    native = ropescale.unpatch(loaded)(ids).logits
    assert torch.equal(native, copy.deepcopy(unpatched()).to(native.dtype)(ids).logits)


STRANGER = """
import sys
from transformers import AutoModelForCausalLM
if sys.argv[2] == "with":
    import ropescale.families
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
else:
    print("loaded")
"""


@pytest.mark.parametrize("known", ["with", "without"])
def test_loading_without_ropescale_is_never_silently_wrong(known: str, tmp_path: Path) -> None:
    patched("dynamic_yarn").save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", STRANGER, str(tmp_path), known], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if known == "without":
        assert done.stdout.strip() == "KeyError 'ropescale'"
    else:
        assert done.stdout.strip() == (
            "CheckpointError llama: a checkpoint saved with a method that acts in attention must be loaded by "
            "ropescale, got method 'dynamic_yarn'; call ropescale.load(path)"
        )


def test_another_attention_function_is_refused_while_patched() -> None:
    model = patched("self_extend")
    model.set_attn_implementation("sdpa")
    with pytest.raises(RopescaleError) as refusal:
        model(prompts())
    assert str(refusal.value) == (
        "attention: must stay 'ropescale' while self_extend is patched in, got 'sdpa'; call "
        "ropescale.unpatch(model) before set_attn_implementation"
    )


def test_composing_over_a_late_method_is_refused(tmp_path: Path) -> None:
    patched("dynamic_yarn").save_pretrained(tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path)
    with pytest.raises(AlreadyScaledError) as refusal:
        ropescale.read_geometry(config, existing="compose")
    assert str(refusal.value) == (
        "llama: a base must be a fixed spectrum, got a ropescale record of 'dynamic_yarn', which acts in attention; "
        'pass existing="replace"'
    )
    assert ropescale.read_geometry(config, existing="replace").original_length == ORIGINAL


@pytest.mark.parametrize(
    ("name", "target"),
    [("dynamic_yarn", 2**20), ("self_extend", (32 - 16) * 8 + 16), ("string", 32), ("rerope", 2**20)],
)
def test_the_maximum_without_a_factor_is_what_the_method_reaches(name: str, target: int) -> None:
    assert ropescale.patch(llama(), name).config.max_position_embeddings == target
    assert ropescale.patch(llama(), name, factor=4).config.max_position_embeddings == 128


# families

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
    assert torch.equal(logits(model), beyond)
    assert model.config.to_dict() == config


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


@pytest.mark.parametrize("mscale", [0.707, 1.0])
@pytest.mark.parametrize("name", LATENT_ATTENTION)
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


def test_every_late_method_is_of_its_kind() -> None:
    assert LATE
    assert all(issubclass(get_method(name), LateMethod) for name in LATE)


@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", "dual_chunk", "streaming", "alibi", "cope"])
def test_forward_and_static_decoding_compile_to_one_graph(case: str) -> None:
    model, ids = patched(case), prompts(length=60)
    whole = model(ids).logits
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert apart(compiled(ids, use_cache=False).logits, whole) < TOLERANCE
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(ids[:, :40], **over(cache))
    steps = [
        compiled(ids[:, at : at + 1], **over(cache), position_ids=torch.tensor([[at]])).logits for at in range(40, 60)
    ]
    assert apart(torch.cat(steps, dim=1), whole[:, 40:]) < TOLERANCE


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
