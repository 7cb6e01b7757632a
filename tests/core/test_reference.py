"""Spectra against values that independent implementations agreed on, and against Transformers bit for bit.

`reference/spectra.json` holds float64 inverse frequencies; each entry names in `agreed_by` the implementations that
gave the same values for the same parameters.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropescale import Geometry, Spectrum, get_method
from ropescale.methods import FixedMethod
from ropescale.spectrum import base_inv_freq

# Not every Transformers 5 has the type
with_proportional = pytest.mark.skipif(
    "proportional" not in ROPE_INIT_FUNCTIONS, reason="this Transformers has no proportional rotation"
)
REFERENCE = Path(__file__).parents[1] / "reference"
GRID: list[dict[str, Any]] = json.loads((REFERENCE / "spectra.json").read_text())["grid"]
TOLERANCE = 2e-6
RESONANT_TOLERANCE = 2e-5  # a reference that rounds wavelengths in float32 takes the other neighbour near a half


def geometry_of(params: dict[str, Any]) -> Geometry:
    """The geometry of a reference entry; abf depends on no length, so its entry states none."""
    rotary_dim = params["head_dim"]
    return Geometry(rotary_dim=rotary_dim, theta=params["base"], original_length=params.get("original_ctx", 4096))


def spectrum_of(entry: dict[str, Any]) -> Spectrum:
    """What ropescale gives for a reference entry."""
    name, params = entry["method"], entry["params"]
    geometry = geometry_of(params)
    factor = params.get("factor", 1.0)
    match name:
        case "rope":
            return Spectrum(base_inv_freq(geometry))
        case "partial_default":
            rotary_dim = int(params["head_dim"] * params["partial_rotary_factor"])
            partial = Geometry(
                rotary_dim=rotary_dim,
                head_dim=params["head_dim"],
                theta=params["base"],
                original_length=params["original_ctx"],
            )
            return Spectrum(base_inv_freq(partial))
        case "linear":
            method = get_method("linear")(factor=factor)
        case "ntk_aware":
            method = get_method("ntk")(factor=factor)
        case "ntk_fixed":
            method = get_method("ntk_fixed")(factor=factor)
        case "ntk_mixed":
            method = get_method("ntk_mixed")(factor=factor, b=params["b"])
        case "ntk_by_parts_paper":
            method = get_method("by_parts")(factor=factor, alpha=params["alpha"], beta=params["beta"])
        case "yarn" | "yarn_notruncate":
            mscales = {knob: params[knob] for knob in ("mscale", "mscale_all_dim") if knob in params}
            method = get_method("yarn")(
                factor=factor,
                beta_fast=params["beta_fast"],
                beta_slow=params["beta_slow"],
                truncate=params["truncate"],
                **mscales,
            )
        case "yarn_wavelength_blend":
            method = get_method("yarn")(
                factor=factor, beta_fast=params["beta_fast"], beta_slow=params["beta_slow"], ramp="wavelength"
            )
        case "yarn_paper_ramp":
            method = get_method("yarn")(
                factor=factor, beta_fast=params["beta"], beta_slow=params["alpha"], ramp="turns"
            )
        case "llama3":
            method = get_method("llama3")(
                factor=factor, low_freq_factor=params["low_freq_factor"], high_freq_factor=params["high_freq_factor"]
            )
        case "resonance_rope":
            method = get_method("linear")(factor=1.0, resonance=True)
        case "resonance_yarn":
            method = get_method("yarn")(factor=factor, resonance=True)
        case "resonance_ntk":
            method = get_method("ntk")(factor=factor, resonance=True)
        case "giraffe_power_k0.1":
            method = get_method("power")(factor=factor, k=params["k"])
        case "giraffe_truncated":
            method = get_method("truncated")(factor=factor, cutoff_length=params["truncate"])
        case "abf":
            method = get_method("abf")(factor=factor, theta=params["new_base"])
        case "proportional":
            # at a factor of 1 the law of identity is declared away below a proportion of 1
            method = get_method("proportional")(factor=factor, partial_rotary_factor=params["partial_rotary_factor"])
        case "longrope_long" | "longrope_short":
            # the published lists are not in the file, so they are what the reference divided theta's series by:
            # these two entries check the attention factor and that a list lands on its pairs, not the list's values
            base = base_inv_freq(geometry, torch.float64)
            stretch = base / torch.tensor(entry["inv_freq"], dtype=torch.float64)
            factor = params["max_ctx"] / params["original_ctx"]
            method = get_method("longrope")(factor=factor, long_factor=stretch.tolist())
        case _:
            raise AssertionError(f"no method of ropescale is named for the reference entry {name!r}")
    return method.spectrum(geometry)


def entry_id(entry: dict[str, Any]) -> str:
    return "-".join([entry["method"], *(f"{key}={value}" for key, value in entry["params"].items())])


@pytest.mark.parametrize("entry", GRID, ids=entry_id)
def test_a_spectrum_is_the_one_that_independent_implementations_agree_on(entry: dict[str, Any]) -> None:
    found = spectrum_of(entry)
    expected = torch.tensor(entry["inv_freq"], dtype=torch.float64)
    tolerance = RESONANT_TOLERANCE if entry["method"].startswith("resonance") else TOLERANCE
    assert found.inv_freq.dtype == torch.float32
    assert found.inv_freq.shape == expected.shape
    assert torch.equal(found.inv_freq == 0, expected == 0)
    turning = expected > 0
    relative = (found.inv_freq.double()[turning] / expected[turning] - 1).abs().max().item()
    assert relative <= tolerance
    assert found.attention_factor == pytest.approx(entry["attention_factor"], rel=0, abs=1e-9)


def test_the_reference_covers_every_static_method() -> None:
    named = {entry["method"] for entry in GRID}
    assert len(GRID) == 285
    assert named == {
        "abf",
        "giraffe_power_k0.1",
        "giraffe_truncated",
        "linear",
        "llama3",
        "longrope_long",
        "longrope_short",
        "ntk_aware",
        "ntk_by_parts_paper",
        "ntk_fixed",
        "ntk_mixed",
        "partial_default",
        "proportional",
        "resonance_ntk",
        "resonance_rope",
        "resonance_yarn",
        "rope",
        "yarn",
        "yarn_notruncate",
        "yarn_paper_ramp",
        "yarn_wavelength_blend",
    }
    assert all(entry["agreed_by"] for entry in GRID)


# (rotary dim, theta, original length): the models in use, and shapes that no model has
SHAPES = [
    (2, 10000.0, 512),
    (8, 100.0, 100),
    (16, 1000.0, 333),
    (32, 10000.0, 2048),
    (48, 1234.5, 3000),
    (64, 10000.0, 2048),
    (64, 500000.0, 8192),
    (80, 10000.0, 2048),
    (96, 10000.0, 4096),
    (112, 5000000.0, 32768),
    (128, 1000000.0, 32768),
    (128, 10000.0, 4096),
    (256, 100000000.0, 131072),
    (256, 10000.0, 8192),
]
FACTORS = [1.5, 2.0, 3.7, 8.0, 31.999, 128.0]
shapes = pytest.mark.parametrize(
    "geometry",
    [Geometry(rotary_dim=dim, theta=theta, original_length=length) for dim, theta, length in SHAPES],
    ids=lambda geometry: f"dim {geometry.rotary_dim} theta {geometry.theta:g} length {geometry.original_length}",
)
factors = pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: f"factor {factor:g}")


def theirs(geometry: Geometry, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """The inverse frequencies and the attention factor that Transformers gives for these rope parameters."""
    rope_type = rope.get("rope_type", "default")
    config = LlamaConfig(
        hidden_size=geometry.head_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=geometry.head_dim,
        max_position_embeddings=int(rope.get("factor", 1) * geometry.original_length),
        rope_parameters={"rope_theta": geometry.theta, **rope},
    )
    if rope_type == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[rope_type](config)


def assert_bit_equal(method: FixedMethod, geometry: Geometry, rope: dict[str, Any]) -> None:
    found = method.spectrum(geometry)
    inv_freq, attention_factor = theirs(geometry, rope)
    assert torch.equal(found.inv_freq, inv_freq)
    assert found.attention_factor == attention_factor


@shapes
def test_the_base_is_the_default_of_transformers_bit_for_bit(geometry: Geometry) -> None:
    inv_freq, attention_factor = theirs(geometry, {"rope_type": "default"})
    assert torch.equal(base_inv_freq(geometry), inv_freq)
    assert attention_factor == 1.0


@pytest.mark.parametrize("proportion", [0.25, 0.3, 0.4, 0.5, 0.75])
def test_a_partial_rotation_is_that_of_transformers_bit_for_bit(proportion: float) -> None:
    whole = Geometry(rotary_dim=80, theta=10000.0, original_length=2048)
    partial = Geometry(rotary_dim=int(80 * proportion), head_dim=80, theta=10000.0, original_length=2048)
    rope = {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": proportion}
    assert_bit_equal(get_method("linear")(factor=4.0), partial, rope)
    assert theirs(whole, rope)[0].shape == (partial.pairs,)


@factors
@shapes
def test_linear_is_that_of_transformers_bit_for_bit(geometry: Geometry, factor: float) -> None:
    assert_bit_equal(get_method("linear")(factor=factor), geometry, {"rope_type": "linear", "factor": factor})


YARN_KNOBS: dict[str, dict[str, Any]] = {
    "as released": {},
    "other betas": {"beta_fast": 128.0, "beta_slow": 2.0},
    "narrow betas": {"beta_fast": 2.0, "beta_slow": 1.5},
    "fractional bounds": {"truncate": False},
    "equal mscales": {"mscale": 1.0, "mscale_all_dim": 1.0},
    "unequal mscales": {"mscale": 0.707, "mscale_all_dim": 1.0},
    "one mscale of zero": {"mscale": 1.0, "mscale_all_dim": 0.0},
    "one mscale alone": {"mscale": 0.707},
    "a given attention factor": {"attention_factor": 1.25, "mscale": 0.5, "mscale_all_dim": 1.0},
}


@factors
@shapes
@pytest.mark.parametrize("knobs", YARN_KNOBS.values(), ids=YARN_KNOBS)
def test_yarn_is_that_of_transformers_bit_for_bit(knobs: dict[str, Any], geometry: Geometry, factor: float) -> None:
    native = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": geometry.original_length,
        **knobs,
    }
    assert_bit_equal(get_method("yarn")(factor=factor, **knobs), geometry, native)


@factors
@shapes
@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (1.0, 32.0), (0.5, 7.25), (2.0, 2.5)])
def test_llama3_and_by_parts_are_llama3_of_transformers_bit_for_bit(
    low: float, high: float, geometry: Geometry, factor: float
) -> None:
    native = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": geometry.original_length,
    }
    llama3 = get_method("llama3")(factor=factor, low_freq_factor=low, high_freq_factor=high)
    assert_bit_equal(llama3, geometry, native)
    assert_bit_equal(get_method("by_parts")(factor=factor, alpha=low, beta=high), geometry, native)


@factors
@shapes
@pytest.mark.parametrize("attention_factor", [None, 1.19])
def test_longrope_is_that_of_transformers_bit_for_bit(
    attention_factor: float | None, geometry: Geometry, factor: float
) -> None:
    pairs = torch.arange(geometry.pairs, dtype=torch.float64)
    stretch = (1 + (factor - 1) * ((pairs + 0.37) / geometry.pairs).clamp(max=1)).tolist()
    native = {
        "rope_type": "longrope",
        "factor": factor,
        "short_factor": stretch,
        "long_factor": stretch,
        "original_max_position_embeddings": geometry.original_length,
        "attention_factor": attention_factor,
    }
    method = get_method("longrope")(factor=factor, long_factor=stretch, attention_factor=attention_factor)
    assert_bit_equal(method, geometry, native)


@with_proportional
@factors
@shapes
def test_proportional_in_full_is_that_of_transformers_bit_for_bit(geometry: Geometry, factor: float) -> None:
    native = {"rope_type": "proportional", "factor": factor, "partial_rotary_factor": 1.0}
    assert_bit_equal(get_method("proportional")(factor=factor, partial_rotary_factor=1.0), geometry, native)


@with_proportional
@factors
@shapes
@pytest.mark.parametrize("proportion", [0.25, 0.3, 0.5, 0.77])
def test_proportional_in_part_is_that_of_transformers_within_the_last_bit(
    proportion: float, geometry: Geometry, factor: float
) -> None:
    # Transformers raises theta to a shorter vector, whose tail a processor rounds otherwise than its body
    native = {"rope_type": "proportional", "factor": factor, "partial_rotary_factor": proportion}
    found = get_method("proportional")(factor=factor, partial_rotary_factor=proportion).spectrum(geometry)
    inv_freq, attention_factor = theirs(geometry, native)
    assert torch.equal(found.inv_freq == 0, inv_freq == 0)
    assert torch.allclose(found.inv_freq, inv_freq, rtol=2**-22, atol=0)
    assert found.attention_factor == attention_factor


@shapes
@pytest.mark.parametrize("theta", [100.0, 20000.0, 500000.0, 1.28e8])
def test_abf_is_the_default_of_transformers_with_another_theta_bit_for_bit(theta: float, geometry: Geometry) -> None:
    native = {"rope_type": "default", "rope_theta": theta}
    assert_bit_equal(get_method("abf")(factor=4.0, theta=theta), geometry, native)


@factors
@shapes
def test_ntk_is_the_default_of_transformers_with_its_theta_bit_for_bit(geometry: Geometry, factor: float) -> None:
    if geometry.rotary_dim == 2:
        geometry = Geometry(rotary_dim=4, theta=geometry.theta, original_length=geometry.original_length)
    dim = geometry.rotary_dim
    native = {"rope_type": "default", "rope_theta": geometry.theta * factor ** (dim / (dim - 2))}
    assert_bit_equal(get_method("ntk")(factor=factor), geometry, native)


def test_both_layouts_of_the_pairs_turn_a_query_alike() -> None:
    geometry = Geometry(rotary_dim=64, theta=10000.0, original_length=2048)
    spectrum = get_method("yarn")(factor=4.0).spectrum(geometry)
    query = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = 777 * spectrum.inv_freq.double()
    interleaved = torch.view_as_real(
        torch.view_as_complex(query.view(-1, 2)) * torch.polar(torch.ones_like(angle), angle)
    )
    to_halves = torch.cat((torch.arange(0, 64, 2), torch.arange(1, 64, 2)))
    first, second = query[to_halves].chunk(2)
    halves = torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()))
    assert torch.allclose(interleaved.flatten()[to_halves], halves, rtol=0, atol=1e-12)
    assert halves.norm().item() == pytest.approx(query.norm().item(), rel=1e-12)


MRROPE: list[dict[str, Any]] = json.loads((REFERENCE / "mrrope.json").read_text())


@pytest.mark.parametrize("variant", ["pro", "uni"])
@pytest.mark.parametrize("case", MRROPE, ids=lambda case: f"{case['rotary_dim']}-{case['original_length']}")
def test_mrrope_is_that_of_the_paper_counted_turn_by_turn(case: dict[str, Any], variant: str) -> None:
    """tests/reference/mrrope.py made the values, without ropescale."""
    geometry = Geometry(rotary_dim=case["rotary_dim"], theta=case["theta"], original_length=case["original_length"])
    found = get_method("mrrope")(factor=case["factor"], variant=variant).spectrum(geometry)
    expected = torch.tensor(case["inv_freq"][variant], dtype=torch.float64)
    assert (found.inv_freq.double() / expected - 1).abs().max().item() <= TOLERANCE
    assert found.attention_factor == pytest.approx(case["attention_factor"], rel=0, abs=1e-9)


def test_the_cases_of_mrrope_hold_every_kind_of_geometry() -> None:
    turns = [
        [
            case["original_length"] / (2 * math.pi) * case["theta"] ** (-at / case["rotary_dim"])
            for at in (0, case["rotary_dim"] - 2)
        ]
        for case in MRROPE
    ]
    assert len(MRROPE) == 20
    assert any(first > 32 and last < 1 for first, last in turns)
    assert any(1 < first < 32 for first, _ in turns)  # none is kept but the first
    assert any(first < 1 for first, _ in turns)  # all are slowed
    assert any(1 < last < 32 for _, last in turns)  # none is slowed by the whole factor
    assert any(last > 32 for _, last in turns)  # none is slowed at all, or by little


@pytest.mark.parametrize("variant", ["pro", "uni"])
def test_where_no_pair_turns_once_mrrope_slows_all_by_the_factor(variant: str) -> None:
    geometry = Geometry(rotary_dim=16, theta=10000.0, original_length=6)
    spectrum = get_method("mrrope")(factor=4.0, variant=variant).spectrum(geometry)
    assert torch.equal(spectrum.inv_freq, get_method("linear")(factor=4.0).spectrum(geometry).inv_freq)


CLIPPED: list[dict[str, Any]] = json.loads((REFERENCE / "clipped.json").read_text())


@pytest.mark.parametrize("case", CLIPPED, ids=lambda case: f"{case['clipped']} of {case['rotary_dim'] // 2}")
def test_clipped_pairs_fall_along_a_cosine_after_theta_was_raised(case: dict[str, Any]) -> None:
    """tests/reference/clipped.py made the values, without ropescale."""
    geometry = Geometry(rotary_dim=case["rotary_dim"], theta=10000.0, original_length=2048)
    found = get_method("abf")(factor=4.0, theta=case["theta"], clipped=case["clipped"]).spectrum(geometry)
    expected = torch.tensor(case["inv_freq"], dtype=torch.float64)
    assert torch.equal(found.inv_freq == 0, expected == 0)
    turning = expected > 0
    assert (found.inv_freq.double()[turning] / expected[turning] - 1).abs().max().item() <= TOLERANCE
    assert found.attention_factor == 1.0


def test_the_cases_of_clipped_pairs_hold_one_pair_all_pairs_and_between() -> None:
    taken = [(case["clipped"], case["rotary_dim"] // 2) for case in CLIPPED]
    assert len(CLIPPED) == 20
    assert any(1 < clipped < pairs for clipped, pairs in taken)
    assert any(clipped == pairs for clipped, pairs in taken)
    assert any(clipped == 1 for clipped, _ in taken)
