"""Every way of computing attention gives what a method's definition says."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ropescale import Geometry, get_method, list_methods
from ropescale.extension import late_of
from ropescale.injection import kernels
from ropescale.injection.forward_pass import ForwardPass, Late
from ropescale.injection.kernels import Call, attend, blockwise, flexible, pairwise
from ropescale.methods.late import LateMethod, Sizes

LENGTH, ORIGINAL = 70, 16  # tokens
HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 12  # of which 8 elements rotate
LATE = [name for name in list_methods() if issubclass(get_method(name), LateMethod)]
KNOBS: dict[str, dict[str, Any]] = {
    "learned": {"max_length": 128},
    "lm_infinite": {"local": 9, "limit": 25, "sinks": 3},
    "dual_chunk": {"chunk": 13, "local": 4},
}
PADS = 11  # before the second row's text


def late(name: str, **knobs: Any) -> Late:
    geometry = Geometry(rotary_dim=8, head_dim=HEAD_DIM, theta=50.0, original_length=ORIGINAL)
    found = late_of(get_method(name)(**KNOBS.get(name, {}) | knobs), geometry)
    assert found is not None
    return found


def inputs(late: Late, *, padded: bool) -> tuple[Tensor, Tensor, Tensor, Call, Tensor]:
    """Queries, keys, values, what the layer asks, and positions, in float64."""
    generator = torch.Generator().manual_seed(0)
    rows = 2 if padded else 1
    query = torch.randn(rows, KEY_HEADS, 2, LENGTH, HEAD_DIM, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, rows, KEY_HEADS, LENGTH, HEAD_DIM, generator=generator, dtype=torch.float64)
    sizes = Sizes(heads=HEADS, head_dim=HEAD_DIM, value_dim=HEAD_DIM, hidden=48)
    begun = late.method.added(late.geometry, sizes)
    added = {
        name: torch.randn(one.shape, generator=generator, dtype=torch.float64) for name, one in sorted(begun.items())
    }
    positions = torch.arange(LENGTH)[None].repeat(rows, 1)
    mask = None
    if padded:
        positions[1] = (positions[1] - PADS).clamp(min=0)
        index = torch.arange(LENGTH)
        visible = (index[None] <= index[:, None]).repeat(2, 1, 1)
        visible[1, :, :PADS] = False
        mask = visible[:, None]
    call = Call(scaling=0.3, layout="half", mask=mask, added=added, dropout=0.0, softcap=None, sinks=None)
    return query, key, value, call, positions


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short text has many."""
    monkeypatch.setattr(kernels, "LONGEST_BLOCK", 16)
    monkeypatch.setattr(kernels, "WIDEST_BIAS", 24)


def agree(found: Tensor | None, expected: Tensor, *, padded: bool) -> bool:
    assert found is not None
    difference = (found - expected).detach().abs()
    if padded:
        difference[1, :, :, :PADS] = 0  # what pads read is of no use to anyone
    return float(difference.max()) < 2e-5  # angles are float32: of positions in blocks, of distances in pairs


@pytest.mark.parametrize("padded", [False, True], ids=["one row", "left padding"])
@pytest.mark.parametrize("name", [*LATE, "dynamic_yarn with a ceiling"])
def test_blocks_and_pairs_agree_with_and_without_gradients(name: str, padded: bool) -> None:
    one = late(name.split()[0], **({"factor": 2} if "ceiling" in name else {}))
    query, key, value, call, positions = inputs(one, padded=padded)
    expected = pairwise(ForwardPass(one, positions, 0), query, key, value, call)
    for learning in (False, True):
        found = blockwise(ForwardPass(one, positions, 0), query.requires_grad_(learning), key, value, call)
        assert agree(found, expected, padded=padded)


@pytest.mark.parametrize("name", LATE)
def test_a_chunk_over_a_cache_is_read_as_in_one_go(name: str) -> None:
    one = late(name)
    query, key, value, call, positions = inputs(one, padded=False)
    whole = pairwise(ForwardPass(one, positions, 0), query, key, value, call)
    index = torch.arange(LENGTH)
    causal = (index[None] <= index[:, None])[None, None]
    for first, last in ((0, 37), (37, 69), (69, 70)):
        chunk = ForwardPass(one, positions[:, first:last], first)
        asked = dataclasses.replace(call, mask=causal[:, :, first:last, :last])
        found = attend(chunk, query[:, :, :, first:last], key[:, :, :last], value[:, :, :last], asked)
        assert agree(found, whole[:, :, :, first:last], padded=False)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True], ids=["one row", "left padding"])
@pytest.mark.parametrize("name", [name for name in LATE if late(name).method.scores_are_products])
def test_flex_attention_gives_the_same(name: str, padded: bool) -> None:
    """On a CPU torch has it for reading only, and writes out every score unless it is compiled."""
    one = late(name)
    query, key, value, call, positions = inputs(one, padded=padded)
    expected = pairwise(ForwardPass(one, positions, 0), query, key, value, call)
    found = flexible(ForwardPass(one, positions, 0), query, key, value, call, compiled=False)
    assert agree(found, expected, padded=padded)


@pytest.mark.parametrize("given", ["softcap", "sinks", "no rotation"])
def test_what_layers_ask_besides_is_read_alike(given: str) -> None:
    one = late("self_extend")
    query, key, value, call, positions = inputs(one, padded=False)
    asked = {
        "softcap": {"softcap": 2.0},
        "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)},
        "no rotation": {"layout": None},
    }[given]
    call = dataclasses.replace(call, **asked)
    expected = pairwise(ForwardPass(one, positions, 0), query, key, value, call)
    assert agree(attend(ForwardPass(one, positions, 0), query, key, value, call), expected, padded=False)
    plain = pairwise(ForwardPass(one, positions, 0), query, key, value, dataclasses.replace(call, layout="half"))
    assert given != "no rotation" or not agree(expected, plain, padded=False)


def test_plain_causal_attention_is_torchs_own_to_the_bit() -> None:
    """A text within the window of a method pays nothing."""
    one = late("rerope", window=LENGTH)
    query, key, value, call, positions = inputs(one, padded=False)
    angles = positions[0, :, None].float() * one.stages[0][0]
    cos, sin = angles.cos().double(), angles.sin().double()
    q, k = (kernels.rotate(x, cos, sin, "half") for x in (query, key))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.flatten(1, 2), k, value, is_causal=True, scale=0.3, enable_gqa=True
    )
    found = attend(ForwardPass(one, positions, 0), query, key, value, call)
    assert torch.equal(found.flatten(1, 2), expected)
