"""What a wrong call says, in full, and that it leaves the model and the disk exactly as they were."""

import copy
import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding

import ropescale
from ropescale import Geometry, RopescaleError, Spectrum, get_method, list_methods
from ropescale.errors import (
    AlreadyPatchedError,
    AlreadyScaledError,
    CheckpointError,
    InvalidArgumentError,
    NotPatchedError,
    UnknownMethodError,
    UnsupportedModelError,
    VerificationError,
)
from ropescale.families.catalogue import CATALOGUE, PATCHED, Family, family_of
from ropescale.methods import FixedMethod
from ropescale.methods import base as registry

METHODS = ", ".join(list_methods())
FAMILIES = ", ".join(sorted(PATCHED))
YARN_KNOBS = "attention_factor, beta_fast, beta_slow, mscale, mscale_all_dim, ramp, resonance, truncate"
AT_LEAST_ONE = "(1 leaves the model as it is)"
DEFAULTS = "`ropescale methods` lists the knobs with their defaults"
TURNS = "at least 0.001 and at most 16777216 (turns over the original length)"
GEOMETRY = Geometry(rotary_dim=64, theta=10000.0, original_length=2048)
ONE_PAIR = Geometry(rotary_dim=2, theta=10000.0, original_length=2048)


@dataclass(frozen=True)
class Wrong:
    """A wrong call, the error that it meets and its text in full."""

    name: str
    call: Callable[..., Any]
    error: type[RopescaleError]
    text: str


def parametrized(wrong: list[Wrong]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("wrong", wrong, ids=lambda case: case.name)


def weights(model: nn.Module) -> dict[str, str]:
    """A hash of every tensor that would be saved."""
    return {
        key: ""
        if value.is_meta
        else hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for key, value in model.state_dict().items()
    }


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Holds that the block changes nothing about the model, and that nothing in it warns."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    config = getattr(model, "config", None)
    # first, because what follows compares a length-dependent module as its last call left it
    logits = None if config is None or on_meta else families.logits(model)
    state = weights(model)
    facts = config and copy.deepcopy(config.to_dict())
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert config is None or config.to_dict() == facts
    assert weights(model) == state
    for name, buffer in model.named_buffers():
        original, values = buffers.pop(name)
        assert buffer is original
        assert on_meta or torch.equal(buffer, values)
    assert not buffers
    assert logits is None or torch.equal(families.logits(model), logits)


def refused(wrong: Wrong, *arguments: Any) -> None:
    with pytest.raises(RopescaleError) as refusal:
        wrong.call(*arguments)
    assert str(refusal.value) == wrong.text
    assert type(refusal.value) is wrong.error


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """One model for all calls that leave it as it was."""
    return families.family("llama")


def patching(*arguments: Any, **keywords: Any) -> Callable[[nn.Module], Any]:
    """A call of patch that lacks its model."""
    return lambda model: ropescale.patch(model, *arguments, **keywords)


def entering(*arguments: Any, **keywords: Any) -> Callable[[nn.Module], Any]:
    """A call of patched that lacks its model."""

    def call(model: nn.Module) -> None:
        with ropescale.patched(model, *arguments, **keywords):
            raise AssertionError("the block of a refused patch must not run")

    return call


def factor_refused(name: str, value: Any, shown: str) -> Wrong:
    rule = f"a number of at least 1 and at most 16777216 {AT_LEAST_ONE}"
    text = f"yarn: factor must be {rule}, got {shown}; {DEFAULTS}"
    return Wrong(name, patching("yarn", factor=value), InvalidArgumentError, text)


def target_refused(name: str, value: Any, shown: str) -> Wrong:
    return Wrong(
        name,
        patching("yarn", target_length=value),
        InvalidArgumentError,
        f"target_length: must be a whole number of tokens, from the original length (64) to 16777216, got {shown}; "
        f"give the context length you want",
    )


def original_refused(name: str, value: Any, shown: str) -> Wrong:
    return Wrong(
        name,
        patching("yarn", factor=4, original_length=value),
        InvalidArgumentError,
        f"original_length: must be a whole number of tokens, from 1 to 16777216, got {shown}; "
        f"leave it out to read it from the config",
    )


ARGUMENTS = [
    Wrong(
        "a method name with two letters exchanged",
        patching("yran", factor=4),
        UnknownMethodError,
        f"unknown method 'yran'; did you mean 'yarn'? available: {METHODS}",
    ),
    Wrong(
        "a method name like no other",
        patching("zzz", factor=4),
        UnknownMethodError,
        f"unknown method 'zzz'; available: {METHODS}",
    ),
    Wrong(
        "an empty method name", patching("", factor=4), UnknownMethodError, f"unknown method ''; available: {METHODS}"
    ),
    Wrong(
        "a misspelt method name in a with statement",
        entering("liner", factor=4),
        UnknownMethodError,
        f"unknown method 'liner'; did you mean 'linear'? available: {METHODS}",
    ),
    Wrong(
        "None for a method",
        patching(None, factor=4),
        InvalidArgumentError,
        "method: must be a registry name or a Method instance, got None; see ropescale.list_methods()",
    ),
    Wrong(
        "a factor in the place of the method",
        patching(4.0),
        InvalidArgumentError,
        "method: must be a registry name or a Method instance, got 4.0; see ropescale.list_methods()",
    ),
    Wrong(
        "a method class that is no instance",
        patching(get_method("linear"), factor=4),
        InvalidArgumentError,
        f"method: must be a registry name or a Method instance, got {get_method('linear')!r}; "
        f"see ropescale.list_methods()",
    ),
    Wrong(
        "a misspelt knob",
        patching("yarn", factor=4, beta_fst=16),
        InvalidArgumentError,
        f"yarn: unknown knob 'beta_fst'; did you mean 'beta_fast'? available: {YARN_KNOBS}",
    ),
    Wrong(
        "a knob of another method",
        patching("yarn", factor=4, window=16),
        InvalidArgumentError,
        f"yarn: unknown knob 'window'; available: {YARN_KNOBS}",
    ),
    Wrong(
        "no theta for abf",
        patching("abf", factor=4),
        InvalidArgumentError,
        "abf: theta is required, got none; give it as a keyword, see `ropescale methods`",
    ),
    Wrong(
        "no list for longrope",
        patching("longrope", target_length=256),
        InvalidArgumentError,
        "longrope: long_factor is required, got none; give it as a keyword, see `ropescale methods`",
    ),
    Wrong(
        "no proportion for proportional",
        patching("proportional", factor=4),
        InvalidArgumentError,
        "proportional: partial_rotary_factor is required, got none; give it as a keyword, see `ropescale methods`",
    ),
    Wrong(
        "neither a factor nor a target",
        patching("linear"),
        InvalidArgumentError,
        "linear: factor or target_length is required, got neither; give factor=4 for four times the original "
        "length (64)",
    ),
    Wrong(
        "a factor and a target that disagree",
        patching("yarn", factor=4, target_length=128),
        InvalidArgumentError,
        "target_length: must agree with factor 4 times the original length (64), which is 256, got 128; "
        "give only one of the two",
    ),
    factor_refused("a factor of a half", 0.5, "0.5"),
    factor_refused("a factor of zero", 0, "0"),
    factor_refused("a negative factor", -1, "-1"),
    factor_refused("a factor that is no number", math.nan, "nan"),
    factor_refused("an infinite factor", math.inf, "inf"),
    factor_refused("a factor in quotes", "4", "'4'"),
    factor_refused("True for a factor", True, "True"),
    factor_refused("a list of factors", [4, 8], "[4, 8]"),
    Wrong(
        "a factor beyond what float32 can count",
        patching("linear", factor=1e6),
        InvalidArgumentError,
        "factor: must give a target length of at most 16777216 tokens, up to which float32 tells neighbouring "
        "positions apart, got 1e+06 times the original length (64); give a smaller one",
    ),
    target_refused("a target below the original length", 32, "32"),
    target_refused("a target in quotes", "256", "'256'"),
    target_refused("a fractional target", 256.0, "256.0"),
    target_refused("True for a target", True, "True"),
    original_refused("an original length of zero", 0, "0"),
    original_refused("a fractional original length", 64.0, "64.0"),
    original_refused("True for an original length", True, "True"),
    original_refused("an original length in quotes", "64", "'64'"),
    Wrong(
        "a target below the original length that was given",
        patching("yarn", target_length=256, original_length=512),
        InvalidArgumentError,
        "target_length: must be a whole number of tokens, from the original length (512) to 16777216, got 256; "
        "give the context length you want",
    ),
    Wrong(
        "an unknown word for existing",
        patching("yarn", factor=4, existing="keep"),
        InvalidArgumentError,
        "existing: must be one of compose, error, replace, got 'keep'; leave it out for 'error'",
    ),
    Wrong(
        "an unknown word for layers",
        patching("yarn", factor=4, layers="local"),
        InvalidArgumentError,
        "layers: must be one of all, full, global, got 'local'; leave it out for 'global'",
    ),
    Wrong(
        "log_n that is no yes or no",
        patching("yarn", factor=4, log_n=1),
        InvalidArgumentError,
        "log_n: must be True or False, got 1; leave it out for False",
    ),
    Wrong(
        "knobs beside an instance",
        lambda model: ropescale.patch(model, get_method("yarn")(factor=4), beta_fast=16),
        InvalidArgumentError,
        "yarn: knobs must be set on the Method instance, got beta_fast beside it; give the name 'yarn' with knobs, "
        "or the instance alone",
    ),
    Wrong(
        "another factor beside an instance",
        lambda model: ropescale.patch(model, get_method("yarn")(factor=4), factor=8),
        InvalidArgumentError,
        "factor: must agree with the Method instance (4), got 8; leave it out",
    ),
    Wrong(
        "another target beside an instance",
        lambda model: ropescale.patch(model, get_method("yarn")(factor=4), target_length=128),
        InvalidArgumentError,
        "target_length: must agree with factor 4 times the original length (64), which is 256, got 128; "
        "give only one of the two",
    ),
    Wrong(
        "resonance that is no yes or no",
        patching("linear", factor=4, resonance=1),
        InvalidArgumentError,
        "linear: resonance must be True or False, got 1; leave it out for False",
    ),
    Wrong(
        "beta_fast below beta_slow",
        patching("yarn", factor=4, beta_fast=1, beta_slow=32),
        InvalidArgumentError,
        "yarn: beta_slow must be at most beta_fast (1), got 32; lower beta_slow or raise beta_fast",
    ),
    Wrong(
        "a list that does not fit the head",
        patching("longrope", factor=4, long_factor=[1.0, 2.0]),
        InvalidArgumentError,
        "longrope: long_factor must hold one stretch per pair (8), got 2; give a list for this model's head",
    ),
    Wrong(
        "taking out a patch that is not there",
        ropescale.unpatch,
        NotPatchedError,
        "model: must be patched to be unpatched, got an unpatched LlamaForCausalLM; call ropescale.patch(model) "
        "first, or load a saved one with ropescale.load(path)",
    ),
]


@parametrized(ARGUMENTS)
def test_a_wrong_call_on_a_model(wrong: Wrong, llama: PreTrainedModel) -> None:
    with untouched(llama):
        refused(wrong, llama)


def made(name: str, **knobs: Any) -> Callable[[], FixedMethod]:
    return lambda: get_method(name)(**{"factor": 4, **knobs})


def at_least(name: str, method: str, knob: str, value: Any, bounds: str) -> Wrong:
    text = f"{method}: {knob} must be a number {bounds}, got {value!r}; {DEFAULTS}"
    return Wrong(name, made(method, **{knob: value}), InvalidArgumentError, text)


KNOBS = [
    Wrong(
        "looking up None", lambda: get_method(None), UnknownMethodError, f"unknown method None; available: {METHODS}"
    ),
    Wrong(
        "looking up a misspelt name",
        lambda: get_method("by_part"),
        UnknownMethodError,
        f"unknown method 'by_part'; did you mean 'by_parts'? available: {METHODS}",
    ),
    Wrong(
        "a beta_slow a little too large",
        made("yarn", beta_fast=1, beta_slow=1.5),
        InvalidArgumentError,
        "yarn: beta_slow must be at most beta_fast (1), got 1.5; lower beta_slow or raise beta_fast",
    ),
    at_least("a beta of zero", "yarn", "beta_slow", 0, f"of {TURNS}"),
    Wrong(
        "a beta in quotes",
        made("yarn", beta_fast="32"),
        InvalidArgumentError,
        f"yarn: beta_fast must be a number of {TURNS}, got '32'; {DEFAULTS}",
    ),
    Wrong(
        "truncate that is no yes or no",
        made("yarn", truncate="no"),
        InvalidArgumentError,
        "yarn: truncate must be True or False, got 'no'; leave it out for True",
    ),
    Wrong(
        "an unknown ramp",
        made("yarn", ramp="dims"),
        InvalidArgumentError,
        "yarn: ramp must be one of pairs, turns, wavelength, got 'dims'; leave it out for the ramp of all released "
        "code",
    ),
    at_least("an attention factor of zero", "yarn", "attention_factor", 0, "above 0"),
    at_least("a negative mscale", "yarn", "mscale", -0.5, "of at least 0"),
    Wrong(
        "alpha above beta",
        made("by_parts", alpha=33),
        InvalidArgumentError,
        "by_parts: alpha must be at most beta (32), got 33; lower alpha or raise beta",
    ),
    at_least("a negative alpha", "by_parts", "alpha", -1, "above 0"),
    Wrong(
        "a low frequency factor above the high one",
        made("llama3", low_freq_factor=5),
        InvalidArgumentError,
        "llama3: low_freq_factor must be at most high_freq_factor (4), got 5; lower low_freq_factor or raise "
        "high_freq_factor",
    ),
    Wrong(
        "one number for a list",
        made("longrope", long_factor=2.0),
        InvalidArgumentError,
        "longrope: long_factor must be a list of finite numbers above 0, one per pair, got 2.0; give the list",
    ),
    Wrong(
        "an empty list",
        made("longrope", long_factor=[]),
        InvalidArgumentError,
        "longrope: long_factor must hold one stretch per pair, got an empty list; give the list",
    ),
    Wrong(
        "a negative stretch",
        made("longrope", long_factor=[1, -2]),
        InvalidArgumentError,
        "longrope: long_factor must be a list of finite numbers above 0, one per pair, got [1, -2]; give the list",
    ),
    Wrong(
        "a stretch of zero in the short list",
        made("longrope", long_factor=[1, 2], short_factor=[0, 1]),
        InvalidArgumentError,
        "longrope: short_factor must be a list of finite numbers above 0, one per pair, got [0, 1]; give the list",
    ),
    Wrong(
        "lists of two lengths",
        made("longrope", long_factor=[1, 2], short_factor=[1, 1, 1]),
        InvalidArgumentError,
        "longrope: short_factor must be as long as long_factor (2), got 3; leave short_factor out for one list at "
        "every length",
    ),
    at_least("a theta of one", "abf", "theta", 1, "above 1 and at most 1e+30"),
    at_least("a negative theta", "abf", "theta", -10000.0, "above 1 and at most 1e+30"),
    at_least("a cut-off of zero", "truncated", "cutoff_length", 0, "above 0"),
    at_least("a negative cut-off", "truncated", "cutoff_length", -64, "above 0"),
    at_least("a negative b", "ntk_mixed", "b", -0.5, "of at least 0"),
    at_least("a negative k", "power", "k", -0.1, "of at least 0"),
    at_least("a proportion of zero", "proportional", "partial_rotary_factor", 0, "above 0 and at most 1"),
    at_least("a proportion above one", "proportional", "partial_rotary_factor", 1.5, "above 0 and at most 1"),
    Wrong(
        "ntk on a single pair",
        lambda: get_method("ntk")(factor=4).spectrum(ONE_PAIR),
        InvalidArgumentError,
        "ntk: rotary_dim must be at least 4, since the first pair is kept and the last is slowed, got 2; use linear",
    ),
    Wrong(
        "an attention factor from a single token",
        lambda: get_method("longrope")(factor=4, long_factor=[2.0]).spectrum(
            Geometry(rotary_dim=2, theta=10000.0, original_length=1)
        ),
        InvalidArgumentError,
        "longrope: original_length must be at least 2 to give an attention factor, got 1; give attention_factor",
    ),
]


def geometry(**facts: Any) -> Callable[[], Geometry]:
    return lambda: Geometry(**{"rotary_dim": 4, "theta": 10000.0, "original_length": 2048, **facts})


CONFIGURED = "read it from the checkpoint's config"
PLAIN = "leave it out where the frequencies are theta's"
FACTS = [
    Wrong(
        "an odd rotary_dim",
        geometry(rotary_dim=3),
        InvalidArgumentError,
        "geometry: rotary_dim must be even, since pairs of elements rotate, got 3; "
        "give the number of rotated elements of one head",
    ),
    Wrong(
        "a rotary_dim in quotes",
        geometry(rotary_dim="64"),
        InvalidArgumentError,
        f"geometry: rotary_dim must be an integer from 2 to 16777216, got '64'; {CONFIGURED}",
    ),
    Wrong(
        "an original length of no tokens",
        geometry(original_length=0),
        InvalidArgumentError,
        f"geometry: original_length must be an integer from 1 to 16777216, got 0; {CONFIGURED}",
    ),
    Wrong(
        "a head smaller than what rotates of it",
        geometry(head_dim=2),
        InvalidArgumentError,
        "geometry: head_dim must be at least rotary_dim (4), got 2; leave it out where the whole head rotates",
    ),
    Wrong(
        "theta of one in a geometry",
        geometry(theta=1.0),
        InvalidArgumentError,
        f"geometry: theta must be a finite number above 1, got 1.0; {CONFIGURED}",
    ),
    Wrong(
        "theta of None",
        geometry(theta=None),
        InvalidArgumentError,
        f"geometry: theta must be a finite number above 1, got None; {CONFIGURED}",
    ),
    Wrong(
        "a base of another size",
        geometry(inv_freq=(1.0,)),
        InvalidArgumentError,
        f"geometry: inv_freq must hold one value per pair (2), got 1; {PLAIN}",
    ),
    Wrong(
        "a negative base",
        geometry(inv_freq=(1.0, -1.0)),
        InvalidArgumentError,
        f"geometry: inv_freq must hold finite numbers that are not negative, got (1.0, -1.0); {PLAIN}",
    ),
    Wrong(
        "a spectrum in float64",
        lambda: Spectrum(torch.ones(2, dtype=torch.float64)),
        InvalidArgumentError,
        "spectrum: inv_freq must be a float32 tensor with one entry per pair, got torch.float64 of shape (2,); "
        "convert it with .float()",
    ),
    Wrong(
        "a negative frequency",
        lambda: Spectrum(torch.tensor([1.0, -0.5])),
        InvalidArgumentError,
        "spectrum: inv_freq must be finite and not negative, got [1.0, -0.5]; check the method's knobs",
    ),
    Wrong(
        "a spectrum that would silence attention",
        lambda: Spectrum(torch.ones(2), 0.0),
        InvalidArgumentError,
        "spectrum: attention_factor must be between 1e-15 and 1e+15, got 0.0; check the method's knobs",
    ),
    Wrong(
        "a spectrum of which scores have more than a float32 holds",
        lambda: get_method("yarn")(factor=2, attention_factor=1e308).spectrum(GEOMETRY),
        InvalidArgumentError,
        "spectrum: attention_factor must be between 1e-15 and 1e+15, got 1e+308; check the method's knobs",
    ),
]

NO_MODEL = "load it first, for instance with ropescale.load(path)"
NO_CONFIG = "pass model.config or AutoConfig.from_pretrained(path)"
STRANGERS = [
    *(
        Wrong(
            f"{verb.__name__} on {thing}",
            lambda verb=verb, value=value: verb(value),
            InvalidArgumentError,
            f"model: must be a loaded Transformers model, got {type(value).__name__}; {NO_MODEL}",
        )
        for verb in (ropescale.patch, ropescale.unpatch, ropescale.record)
        for thing, value in (("a path", "some/path"), ("a config", LlamaConfig()), ("None", None))
    ),
    Wrong(
        "unpatch on a layer",
        lambda: ropescale.unpatch(nn.Linear(2, 2)),
        NotPatchedError,
        "model: must be patched to be unpatched, got an unpatched Linear; call ropescale.patch(model) first, or load "
        "a saved one with ropescale.load(path)",
    ),
    Wrong(
        "read_geometry on a path",
        lambda: ropescale.read_geometry("some/path"),
        UnsupportedModelError,
        f"config: a Transformers config is needed, got str; {NO_CONFIG}",
    ),
    Wrong(
        "read_geometry on a dict",
        lambda: ropescale.read_geometry({"rope_theta": 10000.0}),
        UnsupportedModelError,
        f"config: a Transformers config is needed, got dict; {NO_CONFIG}",
    ),
    Wrong(
        "read_geometry with a fractional length",
        lambda: ropescale.read_geometry(LlamaConfig(), original_length=4096.0),
        InvalidArgumentError,
        "original_length: must be a whole number of tokens, from 1 to 16777216, got 4096.0; "
        "leave it out to read it from the config",
    ),
    Wrong(
        "read_geometry with an unknown word for existing",
        lambda: ropescale.read_geometry(LlamaConfig(), existing="ignore"),
        InvalidArgumentError,
        "existing: must be one of compose, error, replace, got 'ignore'; leave it out for 'error'",
    ),
]


@parametrized(KNOBS + FACTS + STRANGERS)
def test_a_wrong_call_without_a_model(wrong: Wrong) -> None:
    refused(wrong)


def test_read_geometry_takes_the_config_and_not_the_model(llama: PreTrainedModel) -> None:
    with untouched(llama), pytest.raises(UnsupportedModelError) as refusal:
        ropescale.read_geometry(llama)
    assert str(refusal.value) == f"config: a Transformers config is needed, got LlamaForCausalLM; {NO_CONFIG}"


def test_a_layer_without_a_config_is_no_model() -> None:
    layer = nn.Linear(2, 2)
    with untouched(layer), pytest.raises(RopescaleError, match=r"^model: .*, got .*Linear.*; "):
        ropescale.patch(layer, factor=4)


# Models and configs that cannot be patched, or not so

# Families as Transformers builds them, with what the tiny config of the supported ones does not state
FOREIGN: dict[str, dict[str, Any]] = {
    "bloom": {},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "n_positions": 256},
    "gpt2": {"n_positions": 256},
    "granite_swa": {},
    "granitemoe_swa": {},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "n_positions": 256},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64},
    "roformer": {"is_decoder": True, "embedding_size": 64, "max_position_embeddings": 256},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_family_that_is_not_supported_is_refused_by_its_name(name: str) -> None:
    model = families.model_of(families.config_of(name, **FOREIGN[name]))
    kind = type(model.config).__name__
    with untouched(model):
        for call in (ropescale.patch, lambda refused: ropescale.read_geometry(refused.config)):
            with pytest.raises(UnsupportedModelError) as refusal:
                call(model)
            expected = f"not a family that this version of ropescale patches, got {kind}; supported: {FAMILIES}"
            if reason := family_of(name).refused:
                expected = (
                    f"layers must rotate by frequencies that its config states once, got {reason}; take a model of "
                    f"another family"
                )
            assert str(refusal.value) == f"model type {name!r}: {expected}"


def scaled(rope_type: str, maximum: int = 256, **rope: Any) -> Callable[[], PreTrainedModel]:
    """A model whose config is scaled already."""
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, **rope}
    return lambda: families.model_of(
        families.config_of("llama", rope_parameters=parameters, max_position_embeddings=maximum)
    )


def edited(**fields: Any) -> Callable[[], PreTrainedModel]:
    """A model whose config was edited after it was loaded."""

    def build() -> PreTrainedModel:
        model = families.family("llama")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rope_scaling is deprecated, and still assigned in the wild
            for field, value in fields.items():
                setattr(model.config, field, copy.deepcopy(value))
        return model

    return build


def weightless() -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(families.config_of("llama"))


def already_patched() -> nn.Module:
    return ropescale.patch(families.family("llama"), "linear", factor=2)


def with_two_rotaries() -> nn.Module:
    model = families.family("llama")
    model.model.second = copy.deepcopy(model.model.rotary_emb)
    return model


def default(**changes: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **changes}


CHOICES = (
    'pass existing="replace" to start again from theta and the original length, or existing="compose" to scale what '
    "it has now"
)
THETA_LOST = "repair the config (assigning config.rope_scaling drops rope_theta)"
RELOAD = "editing a config after loading changes no buffer: load the model from the edited config"
SUBJECTS: list[tuple[Callable[[], nn.Module], Wrong]] = [
    (
        scaled("yarn", original_max_position_embeddings=64),
        Wrong(
            "a checkpoint scaled by yarn",
            patching("yarn", factor=2),
            AlreadyScaledError,
            f"llama: the checkpoint is already scaled, got rope_type 'yarn'; {CHOICES}",
        ),
    ),
    (
        scaled("linear"),
        Wrong(
            "a checkpoint scaled by linear and forgotten from what",
            patching("yarn", factor=2, existing="replace"),
            AlreadyScaledError,
            "llama: the config must say from what length it was scaled, got rope_type 'linear' and "
            "max_position_embeddings=256 alone; pass original_length=N",
        ),
    ),
    (
        scaled("dynamic", maximum=64),
        Wrong(
            "a base that depends on length",
            patching("yarn", factor=2, existing="compose"),
            AlreadyScaledError,
            "llama: a base must be a fixed spectrum, got rope_type 'dynamic', which depends on length; "
            'pass existing="replace", or factor=1 to leave it as it is',
        ),
    ),
    (
        scaled("longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8, original_max_position_embeddings=64),
        Wrong(
            "a base of two lists",
            patching("yarn", factor=2, existing="compose"),
            AlreadyScaledError,
            "llama: a base must be a fixed spectrum, got rope_type 'longrope', which depends on length; "
            'pass existing="replace", or factor=1 to leave it as it is',
        ),
    ),
    (
        edited(rope_parameters=default(rope_theta=500000.0)),
        Wrong(
            "a theta that was edited after loading",
            patching("yarn", factor=4),
            UnsupportedModelError,
            "llama: the rotary module 'model.rotary_emb' must hold the frequencies of its config, got 0.316228 for "
            f"pair 1 instead of 0.193923; {RELOAD}",
        ),
    ),
    (
        edited(head_dim=32),
        Wrong(
            "a head_dim that was edited after loading",
            patching("yarn", factor=4),
            UnsupportedModelError,
            "llama: the rotary module 'model.rotary_emb' must have 16 pairs as the config says, got (8,); "
            "load the model from this config",
        ),
    ),
    (
        edited(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        Wrong(
            "a theta that was lost by assigning rope_scaling",
            patching("yarn", factor=4),
            UnsupportedModelError,
            "llama: config.rope_parameters must be one dict with a rope_theta above 1, got {'rope_type': 'linear', "
            f"'factor': 4.0, 'rope_theta': None}}; {THETA_LOST}",
        ),
    ),
    (
        edited(rope_parameters=None),
        Wrong(
            "a config without rope parameters",
            patching("yarn", factor=4),
            UnsupportedModelError,
            f"llama: config.rope_parameters must be one dict with a rope_theta above 1, got None; {THETA_LOST}",
        ),
    ),
    (
        edited(rope_parameters={"full_attention": default()}),
        Wrong(
            "rope parameters by kind of layer",
            patching("yarn", factor=4),
            UnsupportedModelError,
            "llama: config.rope_parameters must be one dict with a rope_theta above 1, got {'full_attention': "
            f"{{'rope_type': 'default', 'rope_theta': 10000.0}}}}; {THETA_LOST}",
        ),
    ),
    (
        edited(max_position_embeddings=0),
        Wrong(
            "a config that states no length",
            patching("yarn", factor=4),
            UnsupportedModelError,
            "llama: the config must state max_position_embeddings, got 0; pass original_length=N",
        ),
    ),
    (
        weightless,
        Wrong(
            "a model without weights",
            patching("yarn", factor=4),
            UnsupportedModelError,
            "llama: the model must have its weights, got a rotary module on the meta device; load the weights first",
        ),
    ),
    (
        with_two_rotaries,
        Wrong(
            "a model with two rotary modules",
            patching("yarn", factor=4),
            UnsupportedModelError,
            "llama: one rotary module is needed, got 2 (model.rotary_emb, model.second); "
            "pass a model whose layers share one",
        ),
    ),
    (
        already_patched,
        Wrong(
            "a model that is patched",
            patching("yarn", factor=4),
            AlreadyPatchedError,
            "model: must not be patched yet, got one patched with linear(factor=2.0, resonance=False); "
            "call ropescale.unpatch(model) first",
        ),
    ),
    (
        already_patched,
        Wrong(
            "a model that is patched, in a with statement",
            entering("yarn", factor=4),
            AlreadyPatchedError,
            "model: must not be patched yet, got one patched with linear(factor=2.0, resonance=False); "
            "call ropescale.unpatch(model) first",
        ),
    ),
    (
        already_patched,
        Wrong(
            "the geometry of a patched model",
            lambda model: ropescale.read_geometry(model.config),
            AlreadyScaledError,
            f"llama: the checkpoint is already scaled, got a ropescale record of 'linear'; {CHOICES}",
        ),
    ),
]


@pytest.mark.parametrize(("build", "wrong"), SUBJECTS, ids=[wrong.name for _, wrong in SUBJECTS])
def test_a_model_that_cannot_be_patched_so(build: Callable[[], nn.Module], wrong: Wrong) -> None:
    model = build()
    with untouched(model):
        refused(wrong, model)


def test_a_refused_block_leaves_a_patched_model_patched() -> None:
    model = already_patched()
    with untouched(model), pytest.raises(AlreadyPatchedError), ropescale.patched(model, "yarn", factor=4):
        pass
    assert ropescale.record(model).method == "linear"


# On disk


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patched model on disk."""
    folder = tmp_path_factory.mktemp("saved") / "patched"
    ropescale.patch(families.family("llama"), "linear", factor=4).save_pretrained(folder)
    return folder


def damaged(saved: Path, folder: Path, damage: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the saved model whose config was edited by hand."""
    copied = folder / "damaged"
    shutil.copytree(saved, copied)
    config = json.loads((copied / "config.json").read_text())
    damage(config)
    (copied / "config.json").write_text(json.dumps(config))
    return copied


ALL_FIELDS = (
    "['added', 'attention_factor', 'before', 'existing', 'knobs', 'layers', 'log_n', 'method', 'original_length', "
    "'original_length_source', 'rotary_dim', 'target_length', 'theta', 'versions']"
)
VERSION = ropescale.__version__
SAME_VERSION = "load with the version of ropescale that saved it"
EDITED = "one of the two was edited: remove the record to keep the config as it is"
RECORDS = [
    Wrong(
        "a record that is a word",
        lambda config: config.update(ropescale="linear"),
        CheckpointError,
        f"config: the ropescale record must hold the fields of version {VERSION}, got missing {ALL_FIELDS} and "
        f"unknown []; {SAME_VERSION}",
    ),
    Wrong(
        "an empty record",
        lambda config: config.update(ropescale={}),
        CheckpointError,
        f"config: the ropescale record must hold the fields of version {VERSION}, got missing {ALL_FIELDS} and "
        f"unknown []; {SAME_VERSION}",
    ),
    Wrong(
        "a record with a field missing and one too many",
        lambda config: config["ropescale"].update(note=config["ropescale"].pop("knobs")),
        CheckpointError,
        f"config: the ropescale record must hold the fields of version {VERSION}, got missing ['knobs'] and "
        f"unknown ['note']; {SAME_VERSION}",
    ),
    Wrong(
        "a record of a method that is not here",
        lambda config: config["ropescale"].update(method="zzz"),
        CheckpointError,
        f"config: the ropescale record must name a method of version {VERSION}, got 'zzz' with "
        f"{{'factor': 4.0, 'resonance': False}} (unknown method 'zzz'; available: {METHODS}); {SAME_VERSION}",
    ),
    Wrong(
        "a record with a knob out of bounds",
        lambda config: config["ropescale"]["knobs"].update(factor=0.5),
        CheckpointError,
        f"config: the ropescale record must name a method of version {VERSION}, got 'linear' with "
        f"{{'factor': 0.5, 'resonance': False}} (linear: factor must be a number of at least 1 and at most "
        f"16777216 {AT_LEAST_ONE}, got 0.5; {DEFAULTS}); {SAME_VERSION}",
    ),
    Wrong(
        "a maximum that was edited",
        lambda config: config.update(max_position_embeddings=512),
        CheckpointError,
        f"PATH: config.max_position_embeddings must be what the ropescale record gives (256), got 512; {EDITED}",
    ),
    Wrong(
        "a factor that was edited",
        lambda config: config["rope_parameters"].update(factor=8.0),
        CheckpointError,
        "PATH: config.rope_parameters must be what the ropescale record gives ({'rope_type': 'linear', 'rope_theta': "
        "10000.0, 'factor': 4.0}), got {'factor': 8.0, 'rope_theta': 10000.0, 'rope_type': 'linear'}; " + EDITED,
    ),
]


@parametrized(RECORDS)
def test_loading_a_damaged_checkpoint(wrong: Wrong, saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path, wrong.call)
    before = tree(tmp_path)
    with pytest.raises(RopescaleError) as refusal:
        ropescale.load(str(folder))
    assert str(refusal.value) == wrong.text.replace("PATH", str(folder))
    assert type(refusal.value) is wrong.error
    assert tree(tmp_path) == before


def test_a_checkpoint_saved_patched_and_loaded_without_ropescale_is_not_patched_twice(saved: Path) -> None:
    before = tree(saved)
    model = AutoModelForCausalLM.from_pretrained(saved).eval()
    with untouched(model), pytest.raises(AlreadyScaledError) as refusal:
        ropescale.patch(model, "yarn", factor=2)
    assert str(refusal.value) == (
        f"llama: the checkpoint is already scaled, got a ropescale record of 'linear'; {CHOICES}"
    )
    assert tree(saved) == before


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        ropescale.load(str(tmp_path / "nowhere"))
    assert str(refusal.value).startswith(
        f"{tmp_path / 'nowhere'}: must be a folder with a Transformers checkpoint, or a hub id that can be "
    )
    assert tree(tmp_path) == {}


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


@pytest.fixture
def registered() -> Iterator[None]:
    """Methods defined in a test leave the registry with it."""
    before = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)


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


# Calls that meet some other part first, and still get a worded error


def worded(error: RopescaleError) -> None:
    """The form of every text: what, rule, value; what to do."""
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    assert "; " in text


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


def test_every_text_of_this_table_has_the_one_form() -> None:
    table = [*ARGUMENTS, *KNOBS, *FACTS, *STRANGERS, *(wrong for _, wrong in SUBJECTS), *RECORDS]
    texts = [wrong.text for wrong in table]
    assert len(set(texts)) >= 80
    for text in texts:
        worded(RopescaleError(text))
        assert ", got " in text or text.startswith("unknown method ") or ": unknown knob " in text
        assert not re.match(r"[A-Z](?!ATH:)", text)


def test_a_long_error_keeps_what_to_do() -> None:
    text = str(RopescaleError(f"config.json: must be short, got {'x' * 100_000}; write less"))
    assert len(text) < 5000
    assert text.startswith("config.json: must be short")
    assert text.endswith("; write less")
