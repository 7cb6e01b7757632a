"""Methods against the formulas of their authors' released code, derived anew, where sizes do not divide one another.

The formulas are those of one query and one key: the two positions that are rotated, or nothing where a key is not
read. What the kernels give is compared with a softmax over them in float64, with rotations as complex numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from late import TOLERANCE, added, apart, llama, prompts, read
from torch import Tensor, nn
from transformers import DynamicCache

import ropescale
from ropescale import Geometry, get_method
from ropescale.injection.forward_pass import ForwardPass, Late
from ropescale.injection.kernels import Call, blockwise, pairwise
from ropescale.temperature import LOG_N

TOKENS, WIDTH, ORIGINAL = 61, 8, 32
GEOMETRY = Geometry(rotary_dim=WIDTH, theta=100.0, original_length=ORIGINAL)
Formula = Callable[[int, int], tuple[float, float] | None]  # query, key (at or before it) -> the rotated positions
EVERY = [(i, j) for i in range(TOKENS) for j in range(i + 1)]


def dual_chunk(chunk: int, local: int) -> Formula:
    """Keys and queries restart every chunk - local tokens; another chunk's query stands at what a table ends with."""
    length = chunk - local
    border = [min(place + length, chunk) for place in range(length)]

    def at(i: int, j: int) -> tuple[float, float]:
        query = {0: i % length, 1: border[i % length]}.get(i // length - j // length, border[-1])
        return query, j % length

    return at


def string(shift: int, window: int) -> Formula:
    """Of the keys up to a query, the last `shift` are read as they are."""
    return lambda i, j: (i, j) if j > i - shift else (i - shift + window, j)


def lm_infinite(local: int, sinks: int) -> Formula:
    """The local branch is rotated as it is; the first keys are not, and their queries stand at the limit."""
    return lambda i, j: (i, j) if i - j < local else (local, 0) if j < sinks else None


def lambda_of_the_paper(local: int, sinks: int, limit: int) -> Formula:
    """What is seen is the code's; the distance is the smaller one of the true distance and the limit."""
    return lambda i, j: (min(i - j, limit), 0) if i - j < local or j < sinks else None


def self_extend(group: int, window: int, shift: float) -> Formula:
    """Positions in groups beyond the window."""
    return lambda i, j: (i, j) if i - j < window else (i // group + shift, j // group)


def streaming(sinks: int, recent_size: int) -> Formula:
    """The cache as it is kept: after each token what is too much goes, and places in the cache are positions."""
    kept: list[int] = []
    seen: dict[tuple[int, int], tuple[float, float]] = {}
    for i in range(TOKENS):
        kept.append(i)
        seen |= {(i, j): (len(kept) - 1, place) for place, j in enumerate(kept)}
        if len(kept) > sinks + recent_size:
            kept = kept[:sinks] + kept[len(kept) - recent_size :]
    return lambda i, j: seen.get((i, j))


CASES: dict[str, tuple[str, dict[str, Any], Formula, float]] = {
    **{
        f"dual_chunk {chunk} {local}": ("dual_chunk", {"chunk": chunk, "local": local}, dual_chunk(chunk, local), 1.0)
        for chunk, local in [(24, 4), (13, 4), (13, 6), (12, 6), (12, 7), (12, 11), (7, 1)]
    },
    "dual_chunk as it comes": ("dual_chunk", {}, dual_chunk(ORIGINAL * 3 // 4, ORIGINAL // 8), 1.0),
    "dual_chunk's factor": (
        "dual_chunk",
        {"chunk": 13, "local": 4, "attention_factor": 0.05 * math.log(TOKENS / ORIGINAL) + 1},
        dual_chunk(13, 4),
        0.05 * math.log(TOKENS / ORIGINAL) + 1,
    ),
    "string": ("string", {"shift": 10, "window": 3}, string(10, 3), 1.0),
    "string as wide as the shift": ("string", {"shift": 7, "window": 7}, string(7, 7), 1.0),
    "string's factor": (
        "string",
        {"shift": 11, "window": 4, "attention_factor": 0.1 * math.log(2) + 1},
        string(11, 4),
        0.1 * math.log(2) + 1,
    ),
    "lm_infinite": ("lm_infinite", {"local": 9, "limit": 9, "sinks": 3}, lm_infinite(9, 3), 1.0),
    "lm_infinite as it comes": ("lm_infinite", {}, lm_infinite(ORIGINAL, 10), 1.0),
    "lm_infinite, near limit": (
        "lm_infinite",
        {"local": 20, "limit": 8, "sinks": 3},
        lambda_of_the_paper(20, 3, 8),
        1.0,
    ),
    "lm_infinite, far limit": (
        "lm_infinite",
        {"local": 9, "limit": 25, "sinks": 3},
        lambda_of_the_paper(9, 3, 25),
        1.0,
    ),
    **{
        f"self_extend {group} {window}": (
            "self_extend",
            {"group_size": group, "window": window},
            self_extend(group, window, window - window // group),
            1.0,
        )
        for group, window in [(3, 10), (4, 8), (5, 3), (2, 7)]
    },
    **{
        f"self_extend {group} {window} in one pass": (
            "self_extend",
            {"group_size": group, "window": window, "exact": "division"},
            self_extend(group, window, window - window / group),
            1.0,
        )
        for group, window in [(3, 10), (4, 8), (5, 3), (2, 7)]
    },
    "rerope": ("rerope", {"window": 11}, lambda i, j: (min(i - j, 11), 0), 1.0),
    "leaky_rerope": (
        "leaky_rerope",
        {"window": 11, "stretch": 3},
        lambda i, j: (i, j) if i - j < 11 else ((i + 11 * 2) / 3, j / 3),
        1.0,
    ),
    "streaming": ("streaming", {"sinks": 3, "recent": 12}, streaming(3, 11), 1.0),
}


@cache
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    return q, k, v


def expected(formula: Formula, factor: float) -> Tensor:
    """[tokens, width] float64: what every query reads."""
    q, k, v = drawn()
    pairs = WIDTH // 2
    inv_freq = 100.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)

    def turned(x: Tensor, position: float) -> Tensor:
        turn = torch.polar(torch.full_like(inv_freq, factor), position * inv_freq)
        return torch.complex(x[:pairs], x[pairs:]) * turn

    out = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
    for i in range(TOKENS):
        at = {j: where for j in range(i + 1) if (where := formula(i, j)) is not None}
        products = [(turned(q[i], m) * turned(k[j], n).conj()).real.sum() for j, (m, n) in at.items()]
        out[i] = (torch.stack(products) / WIDTH**0.5).softmax(0) @ v[list(at)]
    return out


@pytest.mark.parametrize("compute", [blockwise, pairwise])
@pytest.mark.parametrize("case", CASES)
def test_a_method_reads_what_its_authors_formula_reads(case: str, compute: Any) -> None:
    name, knobs, formula, factor = CASES[case]
    q, k, v = (one.float()[None, None] for one in drawn())
    late = Late(name=name, method=get_method(name)(**knobs), geometry=GEOMETRY)
    call = Call(scaling=WIDTH**-0.5, layout="half", mask=None, added={}, dropout=0.0, softcap=None, sinks=None)
    found = compute(ForwardPass(late, torch.arange(TOKENS)[None], 0), q[:, :, None], k, v, call)[0, 0, 0]
    assert apart(found.double(), expected(formula, factor)) < 2e-6


@pytest.mark.parametrize("case", CASES)
def test_the_distance_is_that_of_the_formula(case: str) -> None:
    name, knobs, formula, _ = CASES[case]
    query, key = (torch.tensor(side) for side in zip(*EVERY, strict=True))
    distance, visible = get_method(name)(**knobs).distance(GEOMETRY, query, key)
    for (i, j), seen, at in zip(EVERY, visible.tolist(), distance.tolist(), strict=True):
        where = formula(i, j)
        assert seen == (where is not None)
        assert where is None or at == pytest.approx(where[0] - where[1], abs=1e-5)


def test_the_formulas_tell_apart_what_the_pages_say_is_different() -> None:
    """Cases of another definition that would pass here would prove nothing."""
    paper, code = lambda_of_the_paper(20, 3, 8), lm_infinite(20, 3)
    assert apart(expected(paper, 1.0), expected(code, 1.0)) > 1e-2
    floor, division = self_extend(3, 10, 10 - 10 // 3), self_extend(3, 10, 10 - 10 / 3)
    assert apart(expected(floor, 1.0), expected(division, 1.0)) > 1e-2
    factor = 0.1 * math.log(2) + 1
    assert apart(expected(string(11, 4), 1.0), expected(string(11, 4), factor)) > 1e-2


def test_log_n_is_that_of_the_authors() -> None:
    late = Late(name="rerope", method=get_method("rerope")(), geometry=GEOMETRY, temperature=LOG_N)
    found = late.query_scale(torch.arange(TOKENS))
    assert found is not None
    theirs = [max(1.0, math.log(i + 1) / math.log(ORIGINAL)) for i in range(TOKENS)]
    assert apart(found.double(), torch.tensor(theirs, dtype=torch.float64)) < 1e-6


# why float32 costs CoPE more


def with_vectors(model: Any, spread: float, seed: int = 2) -> Any:
    """The model under CoPE, with vectors drawn of that spread."""
    ropescale.patch(model, "cope")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in added(model).values():
            parameter.normal_(0, spread, generator=generator)
    return model


@torch.no_grad()
def test_cope_decodes_as_one_pass_reads_to_the_last_digits() -> None:
    model, ids = with_vectors(llama(), 0.3).double(), prompts()
    whole = model(ids).logits
    assert apart(read(model, ids.split(1, 1), DynamicCache(config=model.config)), whole) < 1e-12
    assert apart(read(model, ids.split(37, 1), DynamicCache(config=model.config)), whole) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("name", ["random", "tiny"])
def test_cope_decodes_in_float32_within_the_tolerance_where_vectors_are_moderate(name: str) -> None:
    model = llama() if name == "random" else ropescale.load("tiny", dtype=torch.float32).eval()
    model, ids = with_vectors(model, 0.1), prompts()
    steps = read(model, ids.split(1, 1), DynamicCache(config=model.config))
    assert apart(steps, model(ids).logits) < TOLERANCE


@torch.no_grad()
def test_what_float32_costs_cope_is_the_model_s_amplification() -> None:
    """Linear layers rounded to float32 in a model that is float64 otherwise, attention included.

    Nothing of CoPE's own is rounded, and still its logits move many times as far as those of the model unpatched: its
    positions sum gates over all keys, and its vectors multiply what the sum is off by. No way of computing attention
    mends that.
    """
    moved = {"cope": 0.0, "unpatched": 0.0}
    for seed in (2, 3, 4):
        ids = torch.randint(3, 97, (1, 90), generator=torch.Generator().manual_seed(seed))
        for name, model in (("cope", with_vectors(llama(), 0.3, seed).double()), ("unpatched", llama().double())):
            exact = model(ids).logits
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_hook(lambda _, __, out: out.float().double())
            moved[name] += apart(model(ids).logits, exact)
    assert moved["cope"] > 5 * moved["unpatched"]
