"""What a wrong call says, in full, where no model is concerned, or none is given."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from wrong_calls import (
    DEFAULTS,
    GEOMETRY,
    METHODS,
    Wrong,
    geometry,
    in_the_one_form,
    made,
    parametrized,
    refused,
    untouched,
)

import ropescale
from ropescale import Geometry, RopescaleError, Spectrum, get_method
from ropescale.errors import (
    InvalidArgumentError,
    NotPatchedError,
    UnknownMethodError,
    UnsupportedModelError,
)

TURNS = "at least 0.001 and at most 16777216 (turns over the original length)"


ONE_PAIR = Geometry(rotary_dim=2, theta=10000.0, original_length=2048)


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


def test_every_text_of_these_tables_has_the_one_form() -> None:
    texts = [wrong.text for wrong in (*KNOBS, *FACTS, *STRANGERS)]
    assert len(set(texts)) >= 45
    in_the_one_form(texts)
