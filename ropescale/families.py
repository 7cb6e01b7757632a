"""Where each Transformers family keeps its rotary facts, and which families ropescale patches.

Knows configs and modules of Transformers; knows nothing of patching.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropescale.errors import (
    AlreadyScaledError,
    CheckpointError,
    InvalidArgumentError,
    UnsupportedModelError,
    shortened,
)
from ropescale.geometry import LONGEST, Geometry, as_float
from ropescale.methods import Method
from ropescale.records import RECORD_FIELD, Record
from ropescale.spectrum import Spectrum, theta_inv_freq

EXISTING = ("compose", "error", "replace")
LAYERS = ("all", "global")

# Families with one rotary module that reads its frequencies from a buffer and its facts from a flat
# `config.rope_parameters`. tests/test_patching.py patches, undoes, saves and reloads every one of them.
FAMILIES = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "aria_text",
        "axk1",
        "axk2",
        "bamba",
        "bitnet",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "cwm",
        "deepseek_v3",
        "deepseek_v32",
        "diffllama",
        "doge",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "falcon",
        "falcon_h1",
        "flex_olmo",
        "flint",
        "gemma",
        "gemma2",
        "glm",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gpt_neox",
        "gpt_neox_japanese",
        "gpt_oss",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "granitemoeshared",
        "helium",
        "hrm_text",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hy_v3",
        "hy_v4",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "jais2",
        "jetmoe",
        "kolibri1",
        "lfm2",
        "lfm2_moe",
        "llama",
        "longcat_flash",
        "minicpm3",
        "minimax",
        "minimax_m2",
        "minimax_m3_vl_text",
        "ministral",
        "mistral",
        "mixtral",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo_hybrid",
        "olmoe",
        "persimmon",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "vaultgemma",
        "youtu",
    }
)

# Phi-3 renames yarn to longrope and refuses every other type.
LONGROPE_ONLY = frozenset({"phi3"})

# The type that a config states where Transformers has none that does the same
LATE_TYPE = "ropescale"
# Of rope_parameters: what says which elements rotate, and by which of an image's coordinates
KEPT_KEYS = ("mrope_interleaved", "mrope_section", "partial_rotary_factor")


def refuse_late(config: PreTrainedConfig, *_: Any, **__: Any) -> tuple[Tensor, float]:
    """What Transformers calls for a config that only ropescale can carry out.

    Raises:
        CheckpointError: always.
    """
    done = saved_record(config)
    what = f"method {done.method!r}" if done else f"rope_type {LATE_TYPE!r} and no record"
    raise CheckpointError(
        f"{config.model_type}: a checkpoint saved with a method that acts in attention must be loaded by ropescale, "
        f"got {what}; call ropescale.load(path)"
    )


ROPE_INIT_FUNCTIONS[LATE_TYPE] = refuse_late


def require_supported(config: Any) -> None:
    """Refuse, by name, what this version does not patch.

    Raises:
        UnsupportedModelError: not a config of a supported family, or one whose layers differ in their rotation.
    """
    if not isinstance(config, PreTrainedConfig):
        raise UnsupportedModelError(
            f"config: a Transformers config is needed, got {type(config).__name__}; "
            f"pass model.config or AutoConfig.from_pretrained(path)"
        )
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {config.model_type!r}: not a family that this version of ropescale patches, got "
            f"{type(config).__name__}; supported: {', '.join(sorted(FAMILIES))}"
        )
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or not as_float(rope.get("rope_theta")) > 1:
        raise UnsupportedModelError(
            f"{config.model_type}: config.rope_parameters must be one dict with a rope_theta above 1, got "
            f"{shortened(rope)}; repair the config (assigning config.rope_scaling drops rope_theta)"
        )
    if rope_type_of(config) not in ("default", *ROPE_INIT_FUNCTIONS):
        raise UnsupportedModelError(
            f"{config.model_type}: rope_type must be one that Transformers knows, got {rope['rope_type']!r}; "
            f"known: {', '.join(sorted(('default', *ROPE_INIT_FUNCTIONS)))}"
        )
    if hasattr(config, "kv_lora_rank") and rope_type_of(config) != "default" and rope.get("mscale_all_dim"):
        raise UnsupportedModelError(
            f"{config.model_type}: rope_parameters must leave the softmax scale alone, got mscale_all_dim="
            f"{shortened(rope['mscale_all_dim'])}, which Transformers multiplies into every layer when it builds the "
            f"model; load the model with rope_type 'default' and its original max_position_embeddings"
        )
    portion = rope.get("partial_rotary_factor", 1.0)
    if not 0 < as_float(portion) <= 1:
        raise UnsupportedModelError(
            f"{config.model_type}: partial_rotary_factor must be a number above 0 and at most 1, got "
            f"{shortened(portion)}; repair the config"
        )


def read_original_length(config: PreTrainedConfig, given: int | None = None) -> tuple[int, str]:
    """The length that the model was pretrained for, in tokens, and where that was read.

    In this order: the argument, the record in the config, `original_max_position_embeddings` in the config,
    `max_position_embeddings`.

    Raises:
        InvalidArgumentError: the argument is no length.
        UnsupportedModelError: the config states none.
    """
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= LONGEST:
            raise InvalidArgumentError(
                f"original_length: must be a whole number of tokens, from 1 to {LONGEST}, got {shortened(given)}; "
                f"leave it out to read it from the config"
            )
        return given, "argument"
    rope = config.rope_parameters
    done = saved_record(config)
    places = (
        # composed: the length it started from was somebody's extended one
        ("record", done.original_length if done and done.existing != "compose" else None),
        ("rope_parameters", rope.get("original_max_position_embeddings")),
        ("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None)),
        ("max_position_embeddings", getattr(config, "max_position_embeddings", None)),
    )
    for source, value in places:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value, source
    raise UnsupportedModelError(
        f"{config.model_type}: the config must state max_position_embeddings, got "
        f"{getattr(config, 'max_position_embeddings', None)!r}; pass original_length"
    )


def read_geometry(
    config: PreTrainedConfig, *, original_length: int | None = None, existing: str = "error"
) -> Geometry:
    """The rotary facts of a checkpoint, as pretraining left them.

    A checkpoint that is scaled already (rope_type other than "default") is refused unless `existing` says how to
    take it: "replace" starts from theta and the true original length, "compose" takes today's spectrum and
    today's maximum for the base.

    Raises:
        UnsupportedModelError: not a family of this version.
        AlreadyScaledError: scaled, and `existing` is "error"; or "replace", and the config does not say from what.
        InvalidArgumentError: `existing` or `original_length` is not what it must be.
    """
    if existing not in EXISTING:
        raise InvalidArgumentError(
            f"existing: must be one of {', '.join(EXISTING)}, got {existing!r}; leave it out for 'error'"
        )
    require_supported(config)
    rope = config.rope_parameters
    scaled_by = scaling(config)
    if scaled_by and existing == "error":
        raise AlreadyScaledError(
            f"{config.model_type}: the checkpoint is already scaled, got {scaled_by}; pass "
            f'existing="replace" to start again from theta and the original length, or existing="compose" to '
            f"scale what it has now"
        )
    inv_freq: tuple[float, ...] = ()
    attention_factor = 1.0
    if scaled_by and existing == "compose":
        if rope_type_of(config) == LATE_TYPE:
            raise AlreadyScaledError(
                f"{config.model_type}: a base must be a fixed spectrum, got {scaled_by}, which acts in attention; "
                f'pass existing="replace"'
            )
        if rope_type_of(config) == "dynamic" or rope.get("short_factor") != rope.get("long_factor"):
            raise AlreadyScaledError(
                f"{config.model_type}: a base must be a fixed spectrum, got {scaled_by}, which depends on length; "
                f'pass existing="replace"'
            )
        live, attention_factor = todays_spectrum(config)
        inv_freq = tuple(live.tolist())
        length = config.max_position_embeddings if original_length is None else original_length
    else:
        if done := saved_record(config):
            # a scaled theta looks like a pretrained one: only the record tells what it was
            if original_length is None and done.existing != "compose":
                original_length = done.original_length
            config = copy.deepcopy(config)
            done.restore(config)
            return read_geometry(config, original_length=original_length, existing="replace")
        length, source = read_original_length(config, original_length)
        # dynamic scaling alone is anchored at max_position_embeddings
        if source == "max_position_embeddings" and rope_type_of(config) not in ("default", "dynamic"):
            raise AlreadyScaledError(
                f"{config.model_type}: the config must say from what length it was scaled, got {scaled_by} and "
                f"max_position_embeddings={length} alone; pass original_length"
            )
    head_dim = head_dim_of(config)
    return Geometry(
        rotary_dim=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        theta=float(rope["rope_theta"]),
        original_length=length,
        head_dim=head_dim,
        layers=config.num_hidden_layers,
        inv_freq=inv_freq,
        attention_factor=attention_factor,
    )


def saved_record(config: PreTrainedConfig) -> Record | None:
    """The record in a config, if it holds one.

    Raises:
        CheckpointError: the record is damaged.
    """
    saved = getattr(config, RECORD_FIELD, None)
    return None if saved is None else Record.from_dict(saved)


def scaling(config: PreTrainedConfig) -> str:
    """How this checkpoint is scaled already, in words; empty where it is as pretrained."""
    if done := saved_record(config):
        return f"a ropescale record of {done.method!r}"
    rope_type = rope_type_of(config)
    return "" if rope_type == "default" else f"rope_type {rope_type!r}"


def rope_type_of(config: PreTrainedConfig) -> str:
    """The native type of a flat config; one that names none is as pretrained."""
    rope_type: str = config.rope_parameters.get("rope_type", "default")
    return rope_type


def todays_spectrum(config: PreTrainedConfig) -> tuple[Tensor, float]:
    """The inverse frequencies [pairs] and the attention factor that Transformers gives this config.

    Raises:
        UnsupportedModelError: rope_parameters that Transformers cannot compute from.
    """
    rope, rope_type = config.rope_parameters, rope_type_of(config)
    if rope_type == "default":
        rotary_dim = int(head_dim_of(config) * rope.get("partial_rotary_factor", 1.0))
        return theta_inv_freq(rope["rope_theta"], rotary_dim), 1.0
    try:
        # of a copy, because these functions write what is missing into the config
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](copy.deepcopy(config))
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{config.model_type}: rope_parameters must be complete for rope_type {rope_type!r}, got "
            f"{shortened(rope)} ({type(error).__name__}: {error}); repair the config"
        ) from error
    return inv_freq, float(attention_factor)


def head_dim_of(config: PreTrainedConfig) -> int:
    """Elements of one attention head, which many configs leave to be worked out.

    Raises:
        UnsupportedModelError: the config states neither.
    """
    stated = getattr(config, "head_dim", None)
    if stated:
        return int(stated)
    if not config.num_attention_heads:
        raise UnsupportedModelError(
            f"{config.model_type}: num_attention_heads must be at least 1, got {config.num_attention_heads!r}; "
            f"repair the config"
        )
    return int(config.hidden_size // config.num_attention_heads)


def uses_sliding_window(config: PreTrainedConfig) -> bool:
    """Whether some layer looks at a window only, which needs no longer context than it had."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return "sliding_attention" in layer_types
    return bool(getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None))


def spelling(config: PreTrainedConfig, method: Method, geometry: Geometry) -> dict[str, Any]:
    """The fields that this config gets for `method`, by field name.

    Raises:
        InvalidArgumentError: knobs that do not fit this geometry.
    """
    parameters = method.rope_parameters(geometry)
    if not isinstance(parameters, dict) or "rope_type" not in parameters:
        raise InvalidArgumentError(
            f"{method.name}: rope_parameters must return a dict with a rope_type, got {shortened(parameters)}; "
            f"leave it out of the method to have the spectrum stated pair by pair"
        )
    if config.model_type in LONGROPE_ONLY and parameters["rope_type"] not in ("default", "longrope"):
        parameters = method.pairwise_rope_parameters(geometry)
    parameters |= kept_parameters(config)
    fields: dict[str, Any] = {"rope_parameters": parameters}
    # A field of this name at the top level overrides the one in rope_parameters when the config is read again
    if hasattr(config, "original_max_position_embeddings"):
        fields["original_max_position_embeddings"] = geometry.original_length
    # Transformers' yarn and longrope read head_dim without looking whether it is None
    if getattr(config, "head_dim", 0) is None:
        fields["head_dim"] = geometry.head_dim
    return fields


def late_spelling(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that this config gets for a method that Transformers cannot carry out, by field name.

    Raises:
        UnsupportedModelError: a family whose config refuses such a type when it is saved.
    """
    if config.model_type in LONGROPE_ONLY:
        raise UnsupportedModelError(
            f"{config.model_type}: a config that can state rope_type {LATE_TYPE!r} is needed for a method that acts "
            f"in attention, got one that states nothing but longrope; use a method of fixed frequencies"
        )
    theta = config.rope_parameters["rope_theta"]
    return {"rope_parameters": {"rope_type": LATE_TYPE, "rope_theta": theta, **kept_parameters(config)}}


def kept_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of `rope_parameters` that no method changes."""
    return {name: copy.copy(config.rope_parameters[name]) for name in KEPT_KEYS if name in config.rope_parameters}


def as_reloaded(config: PreTrainedConfig, fields: dict[str, Any], method: Method, geometry: Geometry) -> Spectrum:
    """The spectrum of `method` as Transformers will compute it when a config with these fields is loaded.

    Stating a frequency as a quotient can cost its last bit. A patched model holds what its saved self will hold, so
    that both give the same logits.

    Raises:
        InvalidArgumentError: the method returns no spectrum of this geometry, or the fields state another one.
    """
    spectrum = method.spectrum(geometry)
    if not isinstance(spectrum, Spectrum) or len(spectrum.inv_freq) != geometry.pairs:
        shown = f"{len(spectrum.inv_freq)} pairs" if isinstance(spectrum, Spectrum) else type(spectrum).__name__
        raise InvalidArgumentError(
            f"{method.name}: spectrum must return a Spectrum of {geometry.pairs} pairs, got {shown}; "
            f"correct the method"
        )
    saved = copy.copy(config)  # shallow: only fields of its own are set, and the computation takes a copy
    for name, value in fields.items():
        setattr(saved, name, value)
    inv_freq, attention_factor = todays_spectrum(saved)
    same = inv_freq.shape == spectrum.inv_freq.shape and torch.allclose(
        inv_freq, spectrum.inv_freq, rtol=1e-6, atol=1e-25
    )
    if not same or abs(attention_factor - spectrum.attention_factor) > 1e-6:
        raise InvalidArgumentError(
            f"{method.name}: rope_parameters must state the method's own spectrum, got "
            f"{shortened(fields['rope_parameters'])}; leave it out of the method to have the spectrum stated pair by "
            f"pair"
        )
    return Spectrum(torch.where(spectrum.inv_freq > 0, inv_freq, 0.0), attention_factor)


@dataclass(frozen=True)
class Rotary:
    """The rotary module of a live model."""

    name: str  # its path within the model
    module: nn.Module


def find_rotary(model: nn.Module, config: PreTrainedConfig) -> Rotary:
    """The one module that turns positions into cos and sin.

    Raises:
        UnsupportedModelError: none or several, or one that is built otherwise than this version knows.
    """
    found = [
        Rotary(name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "inv_freq", None), Tensor)
    ]
    if len(found) != 1:
        names = ", ".join(rotary.name for rotary in found) or "none"
        raise UnsupportedModelError(
            f"{config.model_type}: one rotary module is needed, got {len(found)} ({names}); "
            f"pass a model whose layers share one"
        )
    rotary = found[0]
    for attribute in ("original_inv_freq", "attention_scaling", "rope_type"):
        if not hasattr(rotary.module, attribute):
            raise UnsupportedModelError(
                f"{config.model_type}: the rotary module {rotary.name!r} must have {attribute}, got "
                f"{type(rotary.module).__name__} without it; use a model built by Transformers 5"
            )
    if rotary.module.inv_freq.is_meta:
        raise UnsupportedModelError(
            f"{config.model_type}: the model must have its weights, got a rotary module on the meta device; "
            f"load the weights first"
        )
    return rotary


def require_matching(rotary: Rotary, config: PreTrainedConfig) -> None:
    """Refuse a live module whose frequencies are not what its config says.

    Raises:
        UnsupportedModelError: other pairs or other frequencies, as after a config was edited on a loaded model.
    """
    live = rotary.module.inv_freq
    assert isinstance(live, Tensor)
    expected = todays_spectrum(config)[0].to(live.device)
    if live.shape != expected.shape:
        raise UnsupportedModelError(
            f"{config.model_type}: the rotary module {rotary.name!r} must have {len(expected)} pairs as the config "
            f"says, got {tuple(live.shape)}; load the model from this config"
        )
    if rope_type_of(config) in ("dynamic", "longrope"):
        return  # the buffer holds what the last call needed
    # a model that was cast to bf16 after loading holds rounded frequencies; the patch replaces them by exact ones
    tolerance = 1e-5 if live.dtype == torch.float32 else 1e-2
    off = (live.float() - expected).abs() > tolerance * expected
    if bool(off.any()):
        pair = int(off.int().argmax())
        raise UnsupportedModelError(
            f"{config.model_type}: the rotary module {rotary.name!r} must hold the frequencies of its config, got "
            f"{live[pair].item():g} for pair {pair} instead of {expected[pair].item():g}; editing a config after "
            f"loading changes no buffer: load the model from the edited config"
        )
