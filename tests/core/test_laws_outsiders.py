"""Methods defined outside the package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import families
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import ropescale
from ropescale import Geometry, Spectrum, get_method, list_methods
from ropescale.methods import FixedMethod
from ropescale.methods.late import LateMethod, Region
from ropescale.spectrum import base_inv_freq


def with_inv_freq() -> type[FixedMethod]:
    """A method of a user's own, in its shortest form."""

    @dataclass(frozen=True, kw_only=True)
    class Root(ropescale.Method, name="root"):
        """Every pair slowed by a root of the factor."""

        degree: float = 2.0

        def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
            return base / self.factor ** (1 / self.degree)

    return Root


def with_spectrum() -> type[FixedMethod]:
    """A method of a user's own that makes the whole spectrum."""

    @dataclass(frozen=True, kw_only=True)
    class Sharper(ropescale.Method, name="sharper"):
        """Position interpolation with an attention factor."""

        degree: float = 2.0

        def spectrum(self, geometry: Geometry) -> Spectrum:
            return Spectrum(inv_freq=base_inv_freq(geometry) / self.factor, attention_factor=1 + 0.1 * self.degree)

    return Sharper


outsiders = pytest.mark.parametrize("define", [with_inv_freq, with_spectrum], ids=["by inv_freq", "by spectrum"])


@outsiders
def test_a_class_outside_the_package_is_found_by_its_name(
    registered: None, define: Callable[[], type[FixedMethod]]
) -> None:
    names = list_methods()
    defined = define()
    assert get_method(defined.name) is defined
    assert list_methods() == sorted([*names, defined.name])
    assert get_method(defined.name)(factor=4.0).knobs() == {"factor": 4.0, "resonance": False, "degree": 2.0}


@outsiders
def test_a_class_outside_the_package_patches_saves_and_reloads(
    registered: None, define: Callable[[], type[FixedMethod]], tmp_path: Path
) -> None:
    name = define().name
    model = families.family("llama")
    native = families.logits(model)
    ropescale.patch(model, name, factor=4, degree=3)
    patched = families.logits(model)
    assert not torch.equal(patched, native)
    done = ropescale.record(model)
    assert done is not None
    assert (done.method, done.knobs) == (name, {"factor": 4.0, "resonance": False, "degree": 3})
    model.save_pretrained(tmp_path)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(families.logits(plain), patched, rtol=0, atol=1e-5)
    loaded = ropescale.load(str(tmp_path)).eval()
    assert torch.equal(families.logits(loaded), patched)
    assert ropescale.record(loaded) == done
    assert torch.equal(families.logits(ropescale.unpatch(loaded)), native)
    assert torch.equal(families.logits(ropescale.unpatch(model)), native)


@outsiders
def test_an_instance_of_a_class_outside_the_package_patches(
    registered: None, define: Callable[[], type[FixedMethod]]
) -> None:
    model = families.family("llama")
    method = define()(factor=2.0)
    ropescale.patch(model, method)
    rotary = model.model.rotary_emb
    spectrum = method.spectrum(Geometry(rotary_dim=16, theta=10000.0, original_length=64))
    # the live model holds what its saved self will compute, which may differ in the last bit
    assert torch.allclose(rotary.inv_freq, spectrum.inv_freq, rtol=2**-22, atol=0)
    assert rotary.attention_scaling == spectrum.attention_factor
    assert model.config.max_position_embeddings == 128


def test_resonance_comes_with_inv_freq_and_is_refused_with_spectrum(registered: None) -> None:
    geometry = Geometry(rotary_dim=64, theta=10000.0, original_length=2048)
    wavelength = with_inv_freq()(factor=4.0, resonance=True).spectrum(geometry).wavelength
    torch.testing.assert_close(wavelength, wavelength.round(), rtol=1e-6, atol=0)
    defined = with_spectrum()
    with pytest.raises(ropescale.RopescaleError) as refusal:
        defined(factor=4.0, resonance=True)
    assert str(refusal.value) == (
        "sharper: resonance must be False for a method that defines spectrum itself, got True; define inv_freq instead"
    )
    with pytest.raises(ropescale.RopescaleError) as refusal:
        defined(factor=4.0, clipped=2)
    assert str(refusal.value) == (
        "sharper: clipped must be 0 for a method that defines spectrum itself, got 2; define inv_freq instead"
    )


def test_every_method_is_one_of_the_two_kinds_of_the_root() -> None:
    for name in list_methods():
        kind = get_method(name)
        assert issubclass(kind, ropescale.Method)
        assert issubclass(kind, FixedMethod) != issubclass(kind, LateMethod)
    assert isinstance(get_method("rerope")(), ropescale.Method)
    assert isinstance(get_method("yarn")(factor=4), ropescale.Method)


def test_a_class_that_names_the_root_alone_is_of_the_kind_that_it_defines(registered: None) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Near(ropescale.Method, name="near"):
        """Every distance above 8 as 8."""

        def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
            return (query - key).clamp(max=8), key <= query

        def regions(self, geometry: Geometry, longest: int) -> list[Region]:
            return get_method("rerope")(window=8).regions(geometry, longest)

    assert issubclass(Near, LateMethod)
    assert issubclass(with_inv_freq(), FixedMethod)
    model, expected = families.family("llama"), families.family("llama")
    ropescale.patch(expected, "rerope", window=8)
    assert torch.equal(families.logits(ropescale.patch(model, "near")), families.logits(expected))
    with pytest.raises(ropescale.RopescaleError) as refusal:

        class Nothing(ropescale.Method, name="nothing"):
            """Defines nothing."""

    assert str(refusal.value).endswith(
        "Nothing: inv_freq or spectrum (FixedMethod), or distance (LateMethod) must be defined, got none of them; "
        "define one of them"
    )
    assert not {"nothing"} & set(list_methods())


def test_a_method_leaves_the_registry_with_the_test_that_defined_it() -> None:
    assert not {"root", "sharper"} & set(list_methods())
