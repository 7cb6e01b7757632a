"""What candidates are: whatever an optimiser draws stands for a method that keeps the published constraints."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropescale import Geometry, get_method
from ropescale.errors import InvalidArgumentError
from ropescale.methods import LongRoPE
from ropescale.search.space import Critical, Knobs, Pairs, ranges_of

GEOMETRIES = st.builds(
    Geometry,
    rotary_dim=st.sampled_from([8, 32, 64, 128]),
    theta=st.sampled_from([1e4, 1e5, 5e5, 1e6]),
    original_length=st.sampled_from([128, 2048, 8192]),
)
FACTORS = st.sampled_from([1.5, 2.0, 4.0, 8.0, 32.0])
TINY = Geometry(rotary_dim=32, theta=1e4, original_length=128)


def drawn(data: st.DataObject, dimensions: int) -> Any:
    """A vector as wide as an optimiser might go."""
    return np.array(data.draw(st.lists(st.floats(-9, 9), min_size=dimensions, max_size=dimensions)))


def turns(geometry: Geometry, pair: int) -> float:
    """Of one pair over the original length, from RoFormer's equation alone."""
    return float(geometry.original_length * geometry.theta ** (-2 * pair / geometry.rotary_dim) / (2 * math.pi))


@settings(deadline=None)
@given(st.data(), GEOMETRIES, FACTORS)
def test_every_candidate_of_pairs_is_monotone_within_the_bounds(
    data: st.DataObject, geometry: Geometry, factor: float
) -> None:
    space = Pairs(geometry, factor)
    method = space.method(drawn(data, len(space.scales)))
    assert isinstance(method, LongRoPE)
    stretches = method.long_factor
    assert len(stretches) == geometry.pairs
    assert all(slower >= faster for faster, slower in itertools.pairwise(stretches))
    assert stretches[0] >= 1
    assert stretches[-1] <= 2 * factor
    assert 0.7 <= method.attention_factor_for(geometry) <= 2
    assert method.when_read(geometry) is None
    assert (method.spectrum(geometry).inv_freq > 0).all()


@settings(deadline=None)
@given(st.data(), GEOMETRIES, FACTORS)
def test_every_candidate_of_longrope2_has_a_critical_pair(
    data: st.DataObject, geometry: Geometry, factor: float
) -> None:
    space = Critical(geometry, factor)
    method = space.method(drawn(data, len(space.scales)))
    assert isinstance(method, LongRoPE)
    stretches = method.long_factor
    assert all(slower >= faster for faster, slower in itertools.pairwise(stretches))

    def keeps(critical: int) -> bool:
        # from it on at least the factor, before it the stretches of another theta: a geometric series from 1
        beyond = all(factor <= stretch <= 2 * factor for stretch in stretches[critical:])
        series = [stretches[critical] ** (pair / critical) for pair in range(critical)]
        return beyond and stretches[:critical] == pytest.approx(series, abs=1e-5)

    # none of the pairs that training has shown at every angle ten times, nor one beyond the theoretical pair
    slow = [pair for pair in range(geometry.pairs) if turns(geometry, pair) < 10] or [geometry.pairs - 1]
    unseen = [pair for pair in range(geometry.pairs) if turns(geometry, pair) < 1] or [geometry.pairs - 1]
    assert any(keeps(critical) for critical in range(slow[0], unseen[0] + 1))


@settings(deadline=None)
@given(st.data())
def test_every_candidate_of_knobs_lies_within_its_ranges(data: st.DataObject) -> None:
    space = Knobs(TINY, 4, "yarn", {"beta_fast": (8.0, 64.0), "beta_slow": (0.5, 4.0), "ramp": ("pairs", "turns")})
    knobs = space.method(drawn(data, len(space.scales))).knobs()
    assert 8 <= knobs["beta_fast"] <= 64
    assert 0.5 <= knobs["beta_slow"] <= 4
    assert knobs["ramp"] in ("pairs", "turns")
    late = Knobs(TINY, 4, "rerope", {"window": (8, 96)})
    window = late.method(drawn(data, len(late.scales))).knobs()["window"]
    assert type(window) is int
    assert 8 <= window <= 96


def test_a_search_begins_at_the_formula_itself() -> None:
    yarn = get_method("yarn")(factor=8)
    space = Pairs(TINY, 8)
    begun = space.method(space.vector(yarn))
    assert begun.spectrum(TINY).inv_freq.numpy() == pytest.approx(yarn.spectrum(TINY).inv_freq.numpy(), rel=1e-5)
    assert begun.attention_factor_for(TINY) == pytest.approx(yarn.spectrum(TINY).attention_factor, abs=1e-6)


@pytest.mark.parametrize("name", ["yarn", "by_parts", "ntk_mixed", "power", "abf", "rerope", "self_extend", "nope"])
def test_it_is_known_where_to_look_for_knobs(name: str) -> None:
    space = Knobs(TINY, 4, name, ranges_of(name, TINY, 4))
    assert space.method(space.vector(get_method("yarn")(factor=4))).factor == 4


@pytest.mark.parametrize(
    ("name", "ranges", "text"),
    [
        ("yarn", {"beta_fist": [1, 2]}, "ranges: unknown knob 'beta_fist'; did you mean 'beta_fast'? available: "),
        ("yarn", {"beta_fast": 3}, "ranges: beta_fast must be two numbers, or a list of values to choose from, got 3"),
        ("yarn", {"beta_fast": [64, 8]}, "ranges: beta_fast must lie between two finite numbers, the lower first"),
        (
            "lpes",
            {"points.0": [1, 8], "points.2": [1, 8]},
            "ranges: entries of points must be numbered from 0 on and in order, got points.0, points.2; write them as "
            "in {'points.0': [1, 8], 'points.1': [1, 8]}",
        ),
        (
            "lpes",
            {"points": [[1, 2], [2, 3]], "points.0": [1, 8]},
            "ranges: entries of points must be numbered from 0 on and in order, got points, points.0; write them",
        ),
        ("lpes", {"pints.0": [1, 8]}, "ranges: unknown knob 'pints.0'; did you mean 'points'?"),
        ("yarn", {"ramp": ["pairs"]}, "ranges: must leave something to choose, got {'ramp': ['pairs']}; give a knob"),
        ("yarn", {"beta_fast": [1, 64], "beta_slow": [2, 4]}, "yarn: beta_slow must be at most beta_fast"),
        ("rerope", {"window": [0, 4]}, "rerope: window must be a whole number"),
    ],
)
def test_ranges_that_are_none_are_refused(name: str, ranges: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        Knobs(TINY, 4, name, ranges)
    assert str(error.value).startswith(text)


def test_each_entry_of_a_list_has_a_range_of_its_own() -> None:
    space = Knobs(TINY, 4, "lpes", {"points.0": [1.0, 2.0], "points.1": [3.0], "points.2": [4, 9]})
    assert space.free == ["points.0", "points.2"]
    assert space.method(np.array([0.0, 1.0])) == get_method("lpes")(factor=4, points=[1.0, 3.0, 9])
    assert space.method(np.array([1.0, 0.0])) == get_method("lpes")(factor=4, points=[2.0, 3.0, 4])
    known = ranges_of("lpes", TINY, 4)
    assert known == {f"points.{number}": (1.0, 8.0) for number in range(4)}
    assert ranges_of("ms_poe", TINY, 4) == {"low": (1.0, 4.0), "high": (4.0, 8.0)}


def test_a_method_without_a_known_knob_asks_for_ranges() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^ranges: linear has no knob of which it is known where to look"):
        ranges_of("linear", TINY, 4)
