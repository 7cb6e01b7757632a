"""What is said of a patch that does not take effect, and of values that no part can take."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding
from wrong_calls import GEOMETRY, damaged, default, edited, geometry, made, tree, untouched, worded

import ropescale
from ropescale import Geometry, RopescaleError, Spectrum, get_method
from ropescale.errors import (
    CheckpointError,
    InvalidArgumentError,
    VerificationError,
)
from ropescale.families.catalogue import CATALOGUE, Family
from ropescale.methods import FixedMethod

# A patch that does not take effect


@pytest.fixture
def phimoe(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A rotary module that ignores its buffers and works from the config, out of a patch's reach."""

    class OutOfReach(PhimoeRotaryEmbedding):
        rope_init_fn = staticmethod(PhimoeRotaryEmbedding.compute_default_rope_parameters)

    monkeypatch.setitem(CATALOGUE, "phimoe", Family("phimoe"))
    model = families.family("phimoe")
    del model.model.rotary_emb.rope_init_fn
    model.model.rotary_emb.__class__ = OutOfReach
    return model


def test_a_patch_that_changes_nothing_is_an_error_and_rolled_back(phimoe: PreTrainedModel, registered: None) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Slower(FixedMethod, name="slower"):
        """Position interpolation, with the mscales that PhiMoE looks for."""

        def inv_freq(self, base: torch.Tensor, geometry: Geometry) -> torch.Tensor:
            return base / self.factor

        def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
            return {**self.pairwise_rope_parameters(geometry), "short_mscale": 1.0, "long_mscale": 1.0}

    with untouched(phimoe), pytest.raises(VerificationError) as refusal:
        ropescale.patch(phimoe, Slower(factor=4.0))
    said = re.fullmatch(
        r"phimoe: the rotary module 'model\.rotary_emb' must give the cos and sin of slower, got a difference of "
        r"(\S+); it does not read its frequencies from its buffer, so this version cannot patch it, and the model "
        r"was left as it was",
        str(refusal.value),
    )
    assert said
    assert 0.1 < float(said[1]) <= 2
    assert ropescale.record(phimoe) is None


def test_a_method_that_tells_the_config_another_spectrum_is_refused(llama: PreTrainedModel, registered: None) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Misspelt(FixedMethod, name="misspelt"):
        """Position interpolation, spelled as no change: it would be lost on saving."""

        def inv_freq(self, base: torch.Tensor, geometry: Geometry) -> torch.Tensor:
            return base / self.factor

        def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
            return {"rope_type": "default", "rope_theta": geometry.theta}

    with untouched(llama), pytest.raises(RopescaleError, match="rope_parameters") as refusal:
        ropescale.patch(llama, "misspelt", factor=4)
    worded(refusal.value)


@pytest.mark.parametrize("method", ["linear", "llama3", "power", "yarn"])
def test_a_module_that_fails_on_the_new_config_is_an_error_and_rolled_back(
    phimoe: PreTrainedModel, method: str
) -> None:
    # PhiMoE looks for mscales in the config of every scaled type, which no method of ropescale states
    with untouched(phimoe), pytest.raises(VerificationError, match=r"^phimoe: .*'model\.rotary_emb'.*; .*"):
        ropescale.patch(phimoe, method, factor=4)
    assert ropescale.record(phimoe) is None


OVERFLOWING = 10**400


UNREADABLE: dict[str, Callable[[], Any]] = {
    "a theta beyond float": geometry(theta=OVERFLOWING),
    "a base that is no list": geometry(inv_freq=5),
    "a base of words": geometry(inv_freq=("fast", "slow")),
    "a spectrum from a list": lambda: Spectrum([1.0, 0.5]),
    "a spectrum whose attention factor is a word": lambda: Spectrum(torch.ones(2), "1"),
    "a spectrum of a config": lambda: get_method("linear")(factor=4).spectrum(LlamaConfig()),
    "a factor beyond float": made("linear", factor=OVERFLOWING),
    "a stretch beyond float": made("longrope", long_factor=[OVERFLOWING]),
    "a theta that overflows": lambda: get_method("ntk")(factor=1e300).spectrum(
        Geometry(rotary_dim=4, theta=10000.0, original_length=64)
    ),
    "a beta_fast that overflows": lambda: get_method("yarn")(factor=4, beta_fast=1e308).spectrum(GEOMETRY),
    "a beta_slow that underflows": lambda: get_method("yarn")(factor=4, beta_slow=5e-324).spectrum(GEOMETRY),
}


@pytest.mark.parametrize("call", UNREADABLE.values(), ids=UNREADABLE)
def test_a_value_that_no_arithmetic_can_take_gets_a_worded_error(call: Callable[[], Any]) -> None:
    with pytest.raises(RopescaleError) as refusal:
        call()
    worded(refusal.value)


@pytest.mark.parametrize(
    "arguments",
    [{"factor": OVERFLOWING}, {"target_length": OVERFLOWING}, {"factor": 2, "original_length": OVERFLOWING}],
    ids=["factor", "target_length", "original_length"],
)
def test_a_length_beyond_float_gets_a_worded_error(arguments: dict[str, Any], llama: PreTrainedModel) -> None:
    with untouched(llama), pytest.raises(RopescaleError) as refusal:
        ropescale.patch(llama, "linear", **arguments)
    worded(refusal.value)
    assert list(arguments)[-1] in str(refusal.value)


def test_a_misspelt_factor_is_named(llama: PreTrainedModel) -> None:
    with untouched(llama), pytest.raises(InvalidArgumentError, match=r"^yarn: unknown knob 'factr'; "):
        ropescale.patch(llama, "yarn", factr=4)


BROKEN_CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an unknown rope type, replaced": (default(rope_type="other"), {"existing": "replace", "original_length": 64}),
    "an unknown rope type, composed": (default(rope_type="other"), {"existing": "compose"}),
    "yarn without a factor": (default(rope_type="yarn"), {"existing": "replace", "original_length": 64}),
    "linear without a factor": (default(rope_type="linear"), {"existing": "compose"}),
    "yarn that does not say from what": (default(rope_type="yarn", factor=4.0), {"existing": "compose"}),
    "no partial factor": (default(partial_rotary_factor=None), {}),
    "a partial factor in words": (default(partial_rotary_factor="half"), {}),
}


@pytest.mark.parametrize(("rope", "keywords"), BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS)
def test_a_config_that_was_edited_into_nonsense_gets_a_worded_error(
    rope: dict[str, Any], keywords: dict[str, Any]
) -> None:
    model = edited(rope_parameters=rope)()
    with untouched(model), pytest.raises(RopescaleError) as refusal:
        ropescale.patch(model, "linear", factor=4, **keywords)
    worded(refusal.value)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "before is a word": lambda record: record.update(before="as it was"),
    "before is missing a value": lambda record: record.update(before=None),
    "before holds no rope parameters": lambda record: record["before"].pop("rope_parameters"),
    "added is no list": lambda record: record.update(added=None),
    "added holds a number": lambda record: record.update(added=[3]),
    "the original length is in quotes": lambda record: record.update(original_length="64"),
    "the target length is another": lambda record: record.update(target_length=512),
    "existing is an unknown word": lambda record: record.update(existing="keep"),
    "the knobs are missing a value": lambda record: record.update(knobs=None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_record_that_was_edited_into_nonsense_is_blamed(
    damage: Callable[[dict[str, Any]], Any], saved: Path, tmp_path: Path
) -> None:
    folder = damaged(saved, tmp_path, lambda config: damage(config["ropescale"]))
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="record") as refusal:
        ropescale.load(str(folder))
    worded(refusal.value)
    assert tree(tmp_path) == before


def test_replacing_a_damaged_record_gets_a_worded_error() -> None:
    model = edited(ropescale={"original_length": 64, "before": {}})()
    with untouched(model), pytest.raises(RopescaleError) as refusal:
        ropescale.patch(model, "linear", factor=4, existing="replace")
    worded(refusal.value)


SHAPELESS: dict[str, Callable[[torch.Tensor], Any]] = {
    "too few": lambda base: base[:3],
    "too many": lambda base: torch.cat((base, base)),
    "nothing": lambda base: None,
    "a list": lambda base: base.tolist(),
}


@pytest.mark.parametrize("result", SHAPELESS.values(), ids=SHAPELESS)
def test_a_method_outside_the_package_that_returns_other_than_one_value_per_pair_is_named(
    result: Callable[[torch.Tensor], Any], llama: PreTrainedModel, registered: None
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Shapeless(FixedMethod, name="shapeless"):
        """A method with a mistake in it."""

        def inv_freq(self, base: torch.Tensor, geometry: Geometry) -> Any:
            return result(base)

    with untouched(llama), pytest.raises(RopescaleError, match="shapeless") as refusal:
        ropescale.patch(llama, "shapeless", factor=4)
    worded(refusal.value)


def test_a_long_error_keeps_what_to_do() -> None:
    text = str(RopescaleError(f"config.json: must be short, got {'x' * 100_000}; write less"))
    assert len(text) < 5000
    assert text.startswith("config.json: must be short")
    assert text.endswith("; write less")
