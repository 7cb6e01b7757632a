"""What is said of a model that cannot be patched, or not so, and that it stays as it was."""

import copy
from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from wrong_calls import (
    CHOICES,
    Wrong,
    default,
    edited,
    entering,
    in_the_one_form,
    patching,
    refused,
    untouched,
)

import ropescale
from ropescale.errors import (
    AlreadyPatchedError,
    AlreadyScaledError,
    UnsupportedModelError,
)
from ropescale.families.catalogue import PATCHED, family_of

FAMILIES = ", ".join(sorted(PATCHED))


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


def weightless() -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(families.config_of("llama"))


def already_patched() -> nn.Module:
    return ropescale.patch(families.family("llama"), "linear", factor=2)


def with_two_rotaries() -> nn.Module:
    model = families.family("llama")
    model.model.second = copy.deepcopy(model.model.rotary_emb)
    return model


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
        scaled("dynamic", maximum=64),
        Wrong(
            "a base that depends on length, beside what no factor of 1 takes out",
            patching("yarn", factor=1, log_n=True, existing="compose"),
            AlreadyScaledError,
            "llama: a base must be a fixed spectrum, got rope_type 'dynamic', which depends on length; "
            'pass existing="replace"',
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


def test_every_text_about_a_model_has_the_one_form() -> None:
    in_the_one_form([wrong.text for _, wrong in SUBJECTS])
