"""What a wrong call on a model says, in full, and that it leaves the model exactly as it was."""

import math
from typing import Any

from transformers import PreTrainedModel
from wrong_calls import (
    AT_LEAST_ONE,
    DEFAULTS,
    METHODS,
    Wrong,
    entering,
    in_the_one_form,
    parametrized,
    patching,
    refused,
    untouched,
)

import ropescale
from ropescale import get_method
from ropescale.errors import (
    InvalidArgumentError,
    NotPatchedError,
    UnknownMethodError,
)

YARN_KNOBS = "attention_factor, beta_fast, beta_slow, clipped, mscale, mscale_all_dim, ramp, resonance, truncate"


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
        "a part of a clipped pair",
        patching("linear", factor=4, clipped=1.5),
        InvalidArgumentError,
        "linear: clipped must be a whole number of pairs, of at least 0, got 1.5; leave it out for none",
    ),
    Wrong(
        "more clipped pairs than a head has",
        patching("linear", factor=4, clipped=40),
        InvalidArgumentError,
        "linear: clipped must be at most the pairs of a head (8), got 40; give fewer",
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


def test_every_text_of_this_table_has_the_one_form() -> None:
    texts = [wrong.text for wrong in ARGUMENTS]
    assert len(set(texts)) >= 40
    in_the_one_form(texts)
