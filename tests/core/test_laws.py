"""The laws that every registered method obeys, over random geometries.

A method that does not obey a law says so itself, in `laws_broken()`; no name of a method stands here as an exception.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import families
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import DataObject, DrawFn, SearchStrategy
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropescale import Geometry, Spectrum, get_method
from ropescale.methods import FixedMethod
from ropescale.spectrum import base_inv_freq

LAWS = {"identity", "descending", "stretch"}
TOLERANCE = 1e-6  # relative, of float32 frequencies
every_method = pytest.mark.parametrize("name", families.FIXED)
quick = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def log_uniform(low: float, high: float) -> SearchStrategy[float]:
    """Numbers between the bounds, as many below their geometric mean as above."""
    return st.floats(math.log(low), math.log(high)).map(lambda power: min(max(math.exp(power), low), high))


@st.composite
def geometries(draw: DrawFn) -> Geometry:
    """What pretraining may have fixed, from a single pair to 128; one in five is scaled already, to be scaled on."""
    pretrained = Geometry(
        rotary_dim=2 * draw(st.integers(1, 128)),
        theta=draw(log_uniform(100, 1e8)),
        original_length=draw(st.integers(16, 2**20)),
    )
    if draw(st.integers(0, 4)) > 0:
        return pretrained
    scaled = get_method("yarn")(factor=draw(st.floats(1, 8))).spectrum(pretrained)
    inv_freq = tuple(scaled.inv_freq.tolist())
    return dataclasses.replace(pretrained, inv_freq=inv_freq, attention_factor=scaled.attention_factor)


factors = st.one_of(st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.floats(1, 128))
below_one = st.floats(0.05, 1.0)


@st.composite
def ascending(draw: DrawFn, low: str, high: str, smallest: float, largest: float) -> dict[str, float]:
    """Two knobs of which the first is below the second."""
    lower = draw(log_uniform(smallest, largest / 2))
    return {low: lower, high: lower * draw(st.floats(1.01, 64))}


@st.composite
def stretches(draw: DrawFn, geometry: Geometry, factor: float) -> list[float]:
    """One stretch per pair: within the factor and not falling, as a search gives them, or any that a caller types."""
    if draw(st.booleans()):
        steps = draw(st.lists(st.floats(0, 1), min_size=geometry.pairs, max_size=geometry.pairs))
        return [1 + (factor - 1) * step for step in sorted(steps)]
    return draw(st.lists(st.floats(0.25, 256), min_size=geometry.pairs, max_size=geometry.pairs))


def knobs_of(name: str, geometry: Geometry, factor: float) -> SearchStrategy[dict[str, Any]]:
    """The knobs of a method; a new method whose knobs have defaults needs no line here."""
    known: dict[str, SearchStrategy[dict[str, Any]]] = {
        "abf": st.fixed_dictionaries({"theta": log_uniform(100, 1e9)}),
        "by_parts": ascending("alpha", "beta", 0.1, 64),
        "llama3": ascending("low_freq_factor", "high_freq_factor", 0.1, 64),
        "longrope": st.fixed_dictionaries(
            {"long_factor": stretches(geometry, factor)}, optional={"attention_factor": st.floats(0.5, 2)}
        ),
        "mrrope": st.fixed_dictionaries({"variant": st.sampled_from(["pro", "uni"])}),
        "ntk_mixed": st.fixed_dictionaries({"b": st.floats(0, 3)}),
        "power": st.fixed_dictionaries({"k": st.floats(0, 2)}),
        "proportional": st.fixed_dictionaries({"partial_rotary_factor": st.one_of(st.just(1.0), below_one)}),
        "truncated": st.fixed_dictionaries({}, optional={"cutoff_length": log_uniform(1, 2**20)}),
        "yarn": st.builds(
            lambda betas, rest: betas | rest,
            st.one_of(st.just({}), ascending("beta_slow", "beta_fast", 0.1, 64)),
            st.fixed_dictionaries(
                {},
                optional={
                    "truncate": st.booleans(),
                    "ramp": st.sampled_from(["pairs", "turns", "wavelength"]),
                    "attention_factor": st.floats(0.5, 2),
                    "mscale": st.floats(0, 2),
                    "mscale_all_dim": st.floats(0, 2),
                },
            ),
        ),
    }
    return known.get(name, st.just({}))


@st.composite
def cases(
    draw: DrawFn, name: str, resonance: bool | None = None, clipped: bool | None = None
) -> tuple[FixedMethod, Geometry]:
    """An instance of the method and a geometry that it fits; a taper in one of four unless it is said."""
    geometry, factor = draw(geometries()), draw(factors)
    assume(name != "ntk" or geometry.pairs > 1)  # refused by name: tests/house/test_messages_without_model.py
    knobs = draw(knobs_of(name, geometry, factor))
    resonates = draw(st.booleans()) if resonance is None else resonance
    tapers = draw(st.integers(0, 3)) == 3 if clipped is None else clipped
    pairs = draw(st.integers(1, geometry.pairs)) if tapers else 0
    return get_method(name)(factor=factor, resonance=resonates, clipped=pairs, **knobs), geometry


def stretch_of(spectrum: Spectrum, geometry: Geometry) -> Tensor:
    """[pairs] float64: by how much each pair was slowed down."""
    return base_inv_freq(geometry).double() / spectrum.inv_freq.double()


def is_the_base(method: FixedMethod, geometry: Geometry) -> bool:
    spectrum = method.spectrum(geometry)
    return torch.equal(spectrum.inv_freq, base_inv_freq(geometry)) and (
        spectrum.attention_factor == geometry.attention_factor
    )


def descends(method: FixedMethod, geometry: Geometry) -> bool:
    return bool((method.spectrum(geometry).inv_freq.diff() < 0).all())


def stays_within_the_factor(method: FixedMethod, geometry: Geometry) -> bool:
    stretch = stretch_of(method.spectrum(geometry), geometry)
    return bool(((stretch >= 1 - TOLERANCE) & (stretch <= method.factor * (1 + TOLERANCE))).all())


def as_transformers_reads(rope: dict[str, Any], geometry: Geometry, factor: float) -> tuple[Tensor, float]:
    """The inverse frequencies and attention factor that Transformers makes of these rope parameters."""
    config = LlamaConfig(
        hidden_size=geometry.head_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=geometry.head_dim,
        max_position_embeddings=round(factor * geometry.original_length),
        rope_parameters=rope,
    )
    if rope["rope_type"] == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)


@every_method
@given(data=st.data())
@quick
def test_a_factor_of_one_is_the_identity_bit_for_bit(name: str, data: DataObject) -> None:
    method, geometry = data.draw(cases(name))
    method = type(method)(**{**method.knobs(), "factor": 1.0})
    if "identity" not in method.laws_broken():
        assert is_the_base(method, geometry)


@every_method
@given(data=st.data())
@quick
def test_frequencies_strictly_descend(name: str, data: DataObject) -> None:
    method, geometry = data.draw(cases(name))
    if "descending" not in method.laws_broken():
        assert descends(method, geometry)


@every_method
@given(data=st.data())
@quick
def test_every_stretch_lies_between_one_and_the_factor(name: str, data: DataObject) -> None:
    method, geometry = data.draw(cases(name))
    if "stretch" not in method.laws_broken():
        stretch = stretch_of(method.spectrum(geometry), geometry)
        assert stretch.min().item() >= 1 - TOLERANCE
        assert stretch.max().item() <= method.factor * (1 + TOLERANCE)


@every_method
@given(data=st.data())
@quick
def test_a_spectrum_is_finite_float32_and_one_value_per_pair(name: str, data: DataObject) -> None:
    method, geometry = data.draw(cases(name))
    spectrum = method.spectrum(geometry)
    assert spectrum.inv_freq.shape == (geometry.pairs,)
    assert spectrum.inv_freq.dtype == torch.float32
    assert bool(torch.isfinite(spectrum.inv_freq).all())
    assert bool((spectrum.inv_freq >= 0).all())
    assert isinstance(spectrum.attention_factor, float)
    assert 0 < spectrum.attention_factor < math.inf


@every_method
@given(data=st.data())
@quick
def test_a_spectrum_is_pure(name: str, data: DataObject) -> None:
    method, geometry = data.draw(cases(name))
    facts, knobs = repr(geometry), method.knobs()
    first = method.spectrum(geometry)
    kept = first.inv_freq.clone()
    method.rope_parameters(geometry)
    second = method.spectrum(geometry)
    assert torch.equal(second.inv_freq, kept)
    assert second.attention_factor == first.attention_factor
    first.inv_freq.zero_()  # no tensor is shared between two results
    assert torch.equal(second.inv_freq, kept)
    assert torch.equal(method.spectrum(geometry).inv_freq, kept)
    assert (repr(geometry), method.knobs()) == (facts, knobs)


@every_method
@given(data=st.data())
@quick
def test_transformers_reads_the_spectrum_back_from_its_spelling(name: str, data: DataObject) -> None:
    method, geometry = data.draw(cases(name))
    spectrum = method.spectrum(geometry)
    rope = method.rope_parameters(geometry)
    inv_freq, attention_factor = as_transformers_reads(rope, geometry, method.factor)
    # longrope cannot say zero: a pair without position turns by 1e-30 at most, which no float32 cos or sin shows
    assert bool((inv_freq[spectrum.inv_freq == 0] <= 1e-30).all())
    assert torch.allclose(inv_freq, spectrum.inv_freq, rtol=TOLERANCE, atol=1e-29)
    assert attention_factor == pytest.approx(spectrum.attention_factor, rel=0, abs=TOLERANCE)


@every_method
@given(data=st.data())
@quick
def test_a_method_survives_its_own_knobs(name: str, data: DataObject) -> None:
    method, _ = data.draw(cases(name))
    assert get_method(name)(**method.knobs()) == method


@every_method
@given(data=st.data())
@quick
def test_resonant_wavelengths_are_whole_numbers_of_tokens(name: str, data: DataObject) -> None:
    method, geometry = data.draw(cases(name, resonance=True))
    inv_freq = method.spectrum(geometry).inv_freq
    turning = inv_freq[inv_freq > 0]
    whole = (2 * math.pi / turning.double()).round()
    assert bool((whole >= 1).all())
    # the float32 nearest to one turn in that many tokens, so nothing but a whole number gives it below 2^23 tokens
    assert torch.equal(turning, (2 * math.pi / whole).float())


@every_method
@given(data=st.data())
@quick
def test_resonance_moves_a_wavelength_by_half_a_token_at_most(name: str, data: DataObject) -> None:
    resonant, geometry = data.draw(cases(name, resonance=True, clipped=False))
    assume(resonant.factor > 1)
    plain = type(resonant)(**{**resonant.knobs(), "resonance": False})
    moved = resonant.spectrum(geometry)
    assert moved.attention_factor == plain.spectrum(geometry).attention_factor
    # in float64: knobs that almost meet (llama3, by_parts) magnify the last bit of float32
    exact = plain.inv_freq(base_inv_freq(geometry, torch.float64), geometry)
    turning = exact > 0
    assert torch.equal(moved.inv_freq > 0, turning)
    before = 2 * math.pi / exact[turning]
    after = 2 * math.pi / moved.inv_freq[turning].double()
    # half a token, and what float32 leaves of the wavelength
    assert bool(((after - before).abs() <= 0.5 + 1e-7 * before).all())


@every_method
@given(data=st.data())
@quick
def test_a_taper_leaves_fast_pairs_to_the_bit_and_the_last_without_position(name: str, data: DataObject) -> None:
    clipped, geometry = data.draw(cases(name, resonance=False, clipped=True))
    assume(clipped.factor > 1)  # at 1 the plain one is the base, whatever its knobs
    plain = type(clipped)(**{**clipped.knobs(), "clipped": 0})
    assert "clipped" not in plain.knobs()  # what earlier versions wrote
    before, after = plain.spectrum(geometry), clipped.spectrum(geometry)
    first = geometry.pairs - clipped.clipped
    assert after.attention_factor == before.attention_factor
    assert torch.equal(after.inv_freq[: first + 1], before.inv_freq[: first + 1])
    assert bool((after.inv_freq <= before.inv_freq).all())
    assert clipped.clipped == 1 or after.inv_freq[-1].item() == 0


BROKEN: dict[str, Callable[[FixedMethod, Geometry], bool]] = {
    "identity": lambda method, geometry: method.factor == 1 and not is_the_base(method, geometry),
    "descending": lambda method, geometry: not descends(method, geometry),
    "stretch": lambda method, geometry: not stays_within_the_factor(method, geometry),
}


@every_method
def test_only_laws_that_exist_are_declared_broken_and_with_a_reason(name: str) -> None:
    declared = get_method(name).lawless
    assert set(declared) <= LAWS
    assert all(declared.values())


# (method, law, modifier): a resonant instance of any method declares every law broken, a clipped one two
DECLARED = [
    *((name, law, "") for name in families.FIXED for law in get_method(name).lawless),
    *((name, law, "resonant") for name in families.FIXED for law in sorted(LAWS)),
    *((name, law, "clipped") for name in families.FIXED for law in sorted(LAWS - {"descending"})),
]


@pytest.mark.parametrize(
    ("name", "law", "modifier"),
    DECLARED,
    ids=[f"{law} by {modifier} {name}".replace("  ", " ") for name, law, modifier in DECLARED],
)
def test_a_law_declared_broken_is_broken_by_some_instance(name: str, law: str, modifier: str) -> None:
    def breaks(case: tuple[FixedMethod, Geometry]) -> bool:
        return law in case[0].laws_broken() and BROKEN[law](*case)

    try:
        find(
            cases(name, resonance=modifier == "resonant", clipped=modifier == "clipped"),
            breaks,
            settings=settings(quick, max_examples=400, phases=[Phase.generate]),
        )
    except NoSuchExample:
        pytest.fail(f"{name} declares that it breaks the law {law!r}, and no instance that was tried does")


@every_method
def test_every_knob_of_a_method_is_named_and_typed(name: str) -> None:
    knobs = {item.name: item for item in fields(get_method(name))}
    assert {"factor", "resonance", "clipped"} <= set(knobs)
    assert knobs["factor"].default is MISSING
    assert knobs["resonance"].default is False
    assert knobs["clipped"].default == 0
    assert all(item.kw_only and item.init for item in knobs.values())
