"""Where each Transformers family keeps its rotary facts, and which families ropescale patches.

Knows configs and modules of Transformers; knows nothing of patching.
"""

import copy
import functools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, Gemma3TextConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropescale.errors import (
    AlreadyScaledError,
    CheckpointError,
    InvalidArgumentError,
    UnsupportedModelError,
    shortened,
)
from ropescale.geometry import LONGEST, Geometry, as_float
from ropescale.methods import FixedMethod, Method
from ropescale.records import RECORD_FIELD, Record
from ropescale.spectrum import Spectrum, theta_inv_freq

EXISTING = ("compose", "error", "replace")
UNSCALED = "unscaled"  # the method that raises the limit alone
LAYERS = ("all", "full", "global")
GLOBAL = (
    "compress",
    "full_attention",
    "hybrid",
    "indexed_attention",
)  # layer types that read the whole context, one in a family

# Families with one rotary module that reads its frequencies from buffers, one for all layers or one for each layer
# type, and its facts from `config.rope_parameters`, flat or by layer type. test_patching.py patches, undoes,
# saves and reloads every one of them.
FAMILIES = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "aria_text",
        "axk1",
        "axk2",
        "bailing_hybrid",
        "bamba",
        "beam",
        "bitnet",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "cohere_compass_text",
        "cwm",
        "dbrx",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "diffllama",
        "doge",
        "dots1",
        "dots3_note_text",
        "emu3_text_model",
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
        "gemma3_text",
        "gemma3n_text",
        "gemma4_text",
        "gemma4_unified_text",
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
        "laguna",
        "lfm2",
        "lfm2_moe",
        "lfm3",
        "llama",
        "llama4_text",
        "longcat_flash",
        "mellum",
        "mimo_v2_flash",
        "minicpm3",
        "minimax",
        "minimax_m2",
        "minimax_m3_vl_text",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "mllama_text_model",
        "modernbert-decoder",
        "moshi",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "olmoe",
        "persimmon",
        "phi",
        "phi3",
        "phi4_multimodal",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen4_exp_text",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "vaultgemma",
        "youtu",
        "zamba2",
        "zaya",
    }
)

# Families that rotate in layers of a window alone; those that read the whole context have no positions
LOCAL_ROTATION = frozenset({"afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "kolibri1"})
# The entry that limits what layers of a type see; layers of RECURRENT types see no context by attention
WINDOWS = {
    "chunked_attention": "attention_chunk_size",
    "hybrid_sliding": "sliding_window",
    "sliding_attention": "sliding_window",
}
RECURRENT = frozenset({"conv", "linear_attention", "mamba"})
# Families whose released checkpoints state no rotation, and then have none
PUBLISHED_WITHOUT = frozenset({"olmo_hybrid"})
# Families that build a rotary module also where no layer rotates
BUILT_ANYWAY = frozenset({"falcon", "llama4_text", "smollm3"})
# Families whose "dynamic" with an alpha is one theta, that of pretraining: theta x alpha^(d / (d - 2)), fixed
BY_ALPHA = frozenset({"hunyuan_v1_dense", "hunyuan_v1_moe"})

# What has a rotary embedding and is not patched, and why
REFUSED = {
    "blt": "a patcher, an encoder and a decoder beside the model itself, each with a rotation and lengths of its own",
    "codegen": "positions from a table of sines and cosines that is built from n_positions when the model is loaded, "
    "and no rope_parameters that could state another",
    "gptj": "positions from a table of sines and cosines that is built from n_positions when the model is loaded, "
    "and no rope_parameters that could state another",
    "granite_swa": "a rotation for every theta of layer_rope_theta, each with a config of its own",
    "granitemoe_swa": "a rotation for every theta of layer_rope_theta, each with a config of its own",
    "mistral4": "a class that runs only with a scaling stated: without one it builds cosines for a whole head, and "
    "rotates a part of it",
    "recurrent_gemma": "attention over the latest tokens alone, which a longer context leaves as it is, and no "
    "type but the default one",
    "roformer": "positions from a table of sines and cosines that is built from max_position_embeddings and saved "
    "with the weights",
}
# Phi-3 renames yarn to longrope and refuses every other type; `admit_late` makes it let that of ropescale pass.
LONGROPE_ONLY = frozenset({"phi3", "phi4_multimodal"})
# PhiMoE works its frequencies out at every call, and takes the attention factor from two entries of its own.
RECOMPUTING = frozenset({"phimoe"})

# The type that a config states where Transformers has none that does the same
LATE_TYPE = "ropescale"
# Of rope_parameters: what says which elements rotate, and by which of an image's coordinates; and by how much queries
# grow with their position
QUERY_GROWTH = "llama_4_scaling_beta"
KEPT_KEYS = (QUERY_GROWTH, "mrope_interleaved", "mrope_section", "partial_rotary_factor")


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


def admit_late(config_class: Any) -> None:
    """Let a config class that lists the types it may state be read and saved with `LATE_TYPE` too.

    Of other types nothing changes, and whoever builds a model from such a config still meets `refuse_late`.
    """
    own = config_class.validate_rope

    @functools.wraps(own)
    def validate_rope(config: PreTrainedConfig, *arguments: Any, **keywords: Any) -> None:
        rope = config.rope_parameters
        if not isinstance(rope, dict) or rope.get("rope_type") != LATE_TYPE:
            own(config, *arguments, **keywords)

    config_class.validate_rope = validate_rope
    # what is checked when a config is made and saved was noted when the class was; early versions look it up
    validators = getattr(config_class, "__class_validators__", [])
    validators[:] = [validate_rope if one is own else one for one in validators]


for _family in sorted(LONGROPE_ONLY | RECOMPUTING):
    if _family in CONFIG_MAPPING:
        admit_late(CONFIG_MAPPING[_family])


def text_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the text decoder: the config itself, or that part of a vision-language model's."""
    own: PreTrainedConfig = config.get_text_config()
    return own


@dataclass(frozen=True)
class Part:
    """Layers that share one rotation: all layers of most models, or those of one layer type."""

    label: str  # the layer type; empty where all layers share one rotation
    config: PreTrainedConfig  # as if all layers were of this part
    whole: PreTrainedConfig  # the model's

    @property
    def prefix(self) -> str:
        """What the names of this part's buffers in the rotary module begin with."""
        return f"{self.label}_" if self.label else ""

    def in_whole(self, parameters: Any, others: dict[str, Any]) -> Any:
        """The model's `rope_parameters` where this part's are `parameters` and those of other parts `others`."""
        return {**copy.deepcopy(others), self.label: parameters} if self.label else parameters


def parts_of(config: PreTrainedConfig) -> list[Part]:
    """The parts of a model, the one that reads the whole context first."""
    rope: Any = getattr(config, "rope_parameters", None)
    labels: list[str] = []
    if isinstance(rope, dict):
        # some families name their rotations otherwise than their layers; Transformers 5.14 writes entries of no label
        # beside those of DeepSeek V4
        types, named = (getattr(config, name, None) for name in ("layer_types", "_rope_type_labels"))
        used = _names(types).intersection(rope) or _names(named)
        labels = sorted(used.intersection(label for label in rope if isinstance(rope[label], dict)))
        labels.sort(key=lambda label: label not in GLOBAL)
    return [Part(label, stating(of_layers(config, label), rope[label]), config) for label in labels] or [
        Part("", config, config)
    ]


def _names(entry: Any) -> set[str]:
    """The names in a list of a config; none where it is no list."""
    return {one for one in entry if isinstance(one, str)} if isinstance(entry, (list, set, tuple)) else set()


def of_layers(config: PreTrainedConfig, label: str) -> PreTrainedConfig:
    """The config of one layer type's layers, where those differ in more than their rotation."""
    own: PreTrainedConfig = config.per_layer_config[label] if getattr(config, "is_heterogeneous", False) else config
    return own


def rescaled_parts(config: PreTrainedConfig, layers: str) -> list[Part]:
    """The parts that a patch rescales.

    Raises:
        InvalidArgumentError: only layers that read the whole context were meant, and there are none.
    """
    parts = parts_of(config)
    if layers == "all" or not parts[0].label:
        return parts
    if parts[0].label not in GLOBAL:
        raise InvalidArgumentError(
            f"layers: must be 'all' for a model without a rotation in full_attention layers, got {layers!r} for one "
            f"of {', '.join(part.label for part in parts)}; raise the limit alone: method {UNSCALED!r}, layers 'all'"
        )
    return parts[:1]


def stating(config: PreTrainedConfig, parameters: Any) -> PreTrainedConfig:
    """A shallow copy of a config with other `rope_parameters`, past the checks of what its class may state."""
    copied = copy.copy(config)
    vars(copied)["rope_parameters"] = parameters
    return copied


def require_supported(config: Any) -> None:
    """Refuse, by name, what this version does not patch.

    Raises:
        UnsupportedModelError: not a config of a supported family, or one that states no rotation.
    """
    require_family(config)
    for part in parts_of(config):
        require_rotation(part.config)


def require_family(config: Any) -> None:
    """Refuse, by name, a family that this version does not patch.

    Raises:
        UnsupportedModelError: not a config of a supported family.
    """
    if not isinstance(config, PreTrainedConfig):
        raise UnsupportedModelError(
            f"config: a Transformers config is needed, got {type(config).__name__}; "
            f"pass model.config or AutoConfig.from_pretrained(path)"
        )
    if reason := REFUSED.get(config.model_type):
        raise UnsupportedModelError(
            f"model type {config.model_type!r}: layers must rotate by frequencies that its config states once, got "
            f"{reason}; take a model of another family"
        )
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {config.model_type!r}: not a family that this version of ropescale patches, got "
            f"{type(config).__name__}; supported: {', '.join(sorted(FAMILIES))}"
        )


def require_rotation(config: PreTrainedConfig) -> None:
    """Refuse `rope_parameters` of one part that state no rotation.

    Raises:
        UnsupportedModelError: no theta, an unknown type, or what a patch could not reach.
    """
    rope = getattr(config, "rope_parameters", None)
    if config.model_type in PUBLISHED_WITHOUT and not (isinstance(rope, dict) and rope.get("rope_theta")):
        raise UnsupportedModelError(
            f"{config.model_type}: layers must rotate to be rescaled, got rope_parameters without a rope_theta, "
            f"as published; scale nothing and write a larger max_position_embeddings into the config, which is all it "
            f"needs"
        )
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
        ("rope_parameters", None if filled_in(config) else rope.get("original_max_position_embeddings")),
        ("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None)),
        ("max_position_embeddings", getattr(config, "max_position_embeddings", None)),
    )
    for source, value in places:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value, source
    raise UnsupportedModelError(
        f"{config.model_type}: the config must state max_position_embeddings, got "
        f"{getattr(config, 'max_position_embeddings', None)!r}; pass original_length=N"
    )


def filled_in(config: PreTrainedConfig) -> bool:
    """Whether the original length in `rope_parameters` is one that Transformers wrote, for want of a stated one.

    It writes the maximum of today, and writes it last: a maximum that `factor` has extended already, or one that
    nobody raised, and there is no telling which.
    """
    rope = config.rope_parameters
    return bool(
        rope
        and rope_type_of(config) in ("llama3", "longrope", "yarn")
        and list(rope)[-1] == "original_max_position_embeddings"
        and rope["original_max_position_embeddings"] == getattr(config, "max_position_embeddings", None)
        and getattr(config, "original_max_position_embeddings", None) is None
        and as_float(rope.get("factor")) > 1
    )


def reach_of(config: PreTrainedConfig) -> int:
    """The tokens that a scaled config reaches: its maximum, or what its scaling says where that is more.

    Model cards have people state a scaling and leave the maximum as it was; Vicuna states its reach as
    `max_sequence_length`.
    """
    reaches = [config.max_position_embeddings, getattr(config, "max_sequence_length", None)]
    original, factor = (
        as_float(config.rope_parameters.get(name)) for name in ("original_max_position_embeddings", "factor")
    )
    # what counts queries from there is stated as the original length, also where a scaling has another; and the factor
    # of Llama 3 is no ratio of lengths (3.1: 8 from 8,192 to 131,072; 3.2: 32 to the same)
    other = QUERY_GROWTH in config.rope_parameters
    other |= rope_type_of(config) == "llama3" and config.max_position_embeddings > original
    if 0 < original * factor <= LONGEST and not filled_in(config) and not other:
        reaches.append(round(original * factor))
    return max(reach for reach in reaches if isinstance(reach, int) and reach <= LONGEST)


def read_geometry(
    config: PreTrainedConfig, *, original_length: int | None = None, existing: str = "error"
) -> Geometry:
    """The rotary facts of a checkpoint, as pretraining left them.

    Where layers of each type have a rotation of their own, those of the layers that read the whole context.

    A checkpoint that is scaled already (rope_type other than "default") is refused unless `existing` says how to
    take it: "replace" starts from theta and the true original length, "compose" takes today's spectrum and
    today's maximum for the base.

    Raises:
        UnsupportedModelError: not a family of this version.
        AlreadyScaledError: scaled, and `existing` is "error"; or "replace", and the config does not say from what.
        InvalidArgumentError: `existing` or `original_length` is not what it must be.
    """
    require_existing(existing)
    if isinstance(config, PreTrainedConfig):
        config = text_of(config)
    require_supported(config)
    part = parts_of(config)[0]
    if existing == "compose":
        require_fixed(part)
    return part_geometry(part, original_length=original_length, existing=existing)


def require_existing(existing: str) -> None:
    """Refuse what is no choice.

    Raises:
        InvalidArgumentError: `existing` is not what it must be.
    """
    if existing not in EXISTING:
        raise InvalidArgumentError(
            f"existing: must be one of {', '.join(EXISTING)}, got {existing!r}; leave it out for 'error'"
        )


def depends_on_length(config: PreTrainedConfig) -> bool:
    """Whether Transformers rotates the layers of this part otherwise in longer texts."""
    rope = config.rope_parameters
    if by_alpha(config):
        return False
    return rope_type_of(config) == "dynamic" or (
        rope_type_of(config) == "longrope" and rope.get("short_factor") != rope.get("long_factor")
    )


def require_fixed(part: Part) -> None:
    """Refuse a base that depends on length, which no method of fixed frequencies can start from.

    Raises:
        AlreadyScaledError: the frequencies are others in longer texts.
    """
    if depends_on_length(part.config):
        raise AlreadyScaledError(
            f"{part.config.model_type}: a base must be a fixed spectrum, got {scaling(part.config)}, which depends on "
            f'length; pass existing="replace", or factor=1 to leave it as it is'
        )


def _forgotten(config: PreTrainedConfig, source: str) -> bool:
    """Whether a scaled config does not say from what length; `source` is where one was read."""
    # dynamic scaling alone is anchored at max_position_embeddings
    return source == "max_position_embeddings" and rope_type_of(config) != "dynamic"


def _choices(part: Part) -> str:
    """What `existing` may be for a part that is scaled: what this one can be started from."""
    config = part.config
    forgotten = saved_record(config) is None and _forgotten(config, read_original_length(config)[1])
    replace = f'existing="replace"{" and original_length=N" if forgotten else ""} to start again from theta and the '
    if rope_type_of(config) == LATE_TYPE or depends_on_length(config):
        return f"{replace}original length"
    return f'{replace}original length, or existing="compose" to scale what it has now'


def part_geometry(part: Part, *, original_length: int | None = None, existing: str = "error") -> Geometry:
    """The rotary facts of one part; the arguments and errors are those of `read_geometry`."""
    config = part.config
    rope = config.rope_parameters
    scaled_by = scaling(config)
    if scaled_by and existing == "error":
        raise AlreadyScaledError(
            f"{config.model_type}: the checkpoint is already scaled, got {scaled_by}; pass {_choices(part)}"
        )
    inv_freq: tuple[float, ...] = ()
    attention_factor = 1.0
    if scaled_by and existing == "compose":
        if rope_type_of(config) == LATE_TYPE:
            raise AlreadyScaledError(
                f"{config.model_type}: a base must be a fixed spectrum, got {scaled_by}, which acts in attention; "
                f'pass existing="replace"'
            )
        live, attention_factor = todays_spectrum(part)
        inv_freq = tuple(live.tolist())
        length = reach_of(config) if original_length is None else original_length
    else:
        if done := saved_record(config):
            # a scaled theta looks like a pretrained one: only the record tells what it was
            if original_length is None and done.existing != "compose":
                original_length = done.original_length
            whole = copy.deepcopy(part.whole)
            done.restore(whole)
            require_supported(whole)
            before = {one.label: one for one in parts_of(whole)}
            if part.label not in before:
                raise CheckpointError(
                    f"config: the ropescale record must hold the rope_parameters of the same layer types, got "
                    f"{', '.join(before) or 'none'} without {part.label}; restore the config.json that ropescale saved"
                )
            return part_geometry(before[part.label], original_length=original_length, existing="replace")
        length, source = read_original_length(config, original_length)
        if scaled_by and _forgotten(config, source):
            raise AlreadyScaledError(
                f"{config.model_type}: the config must say from what length it was scaled, got {scaled_by} and "
                f"max_position_embeddings={length} alone; pass original_length=N"
            )
    head_dim = head_dim_of(config)
    rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if pretrained_proportional(config):
        inv_freq, rotary_dim = tuple(todays_spectrum(part)[0].tolist()), head_dim
    return Geometry(
        rotary_dim=rotary_dim,
        theta=theta_of(config),
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
    as_pretrained = rope_type == "default" or pretrained_proportional(config) or by_alpha(config)
    return "" if as_pretrained else f"rope_type {rope_type!r}"


def by_alpha(config: PreTrainedConfig) -> bool:
    """Whether this part states its pretrained theta by an alpha, which Transformers' type of that name knows not."""
    rope = config.rope_parameters
    return config.model_type in BY_ALPHA and rope_type_of(config) == "dynamic" and as_float(rope.get("alpha")) > 0


def theta_of(config: PreTrainedConfig) -> float:
    """The base of the series of frequencies that this part was pretrained with."""
    theta = float(config.rope_parameters["rope_theta"])
    if not by_alpha(config):
        return theta
    dim = head_dim_of(config)
    return float(theta * config.rope_parameters["alpha"] ** (dim / (dim - 2)))


def pretrained_proportional(config: PreTrainedConfig) -> bool:
    """Whether this part was pretrained with pairs that do not rotate (p-RoPE, as in Gemma 4), and is not scaled."""
    return rope_type_of(config) == "proportional" and config.rope_parameters.get("factor") in (None, 1)


def rope_type_of(config: PreTrainedConfig) -> str:
    """The native type of a flat config; one that names none is as pretrained."""
    rope_type: str = config.rope_parameters.get("rope_type", "default")
    return rope_type


def todays_spectrum(part: Part) -> tuple[Tensor, float]:
    """The inverse frequencies [pairs] and the attention factor that Transformers gives these layers.

    Raises:
        UnsupportedModelError: rope_parameters that Transformers cannot compute from.
    """
    config = part.config
    rope, rope_type = config.rope_parameters, rope_type_of(config)
    if rope_type == "default" or by_alpha(config):
        rotary_dim = int(head_dim_of(config) * rope.get("partial_rotary_factor", 1.0))
        return theta_inv_freq(theta_of(config), rotary_dim), 1.0
    try:
        # of a copy, because these functions write what is missing into the config
        stated = copy.deepcopy(stating(config, part.in_whole(rope, part.whole.rope_parameters)))
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](stated, layer_type=part.label or None)
        return inv_freq, float(attention_factor)
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{config.model_type}: rope_parameters must be complete for rope_type {rope_type!r}, got "
            f"{shortened(rope)} ({type(error).__name__}: {error}); repair the config"
        ) from error


def head_dim_of(config: PreTrainedConfig) -> int:
    """Elements of one attention head, which many configs leave to be worked out.

    Raises:
        UnsupportedModelError: the config states neither.
    """
    try:
        stated = getattr(config, "head_dim", None)
        if stated:
            return int(stated)
        if config.num_attention_heads:
            return int(config.hidden_size // config.num_attention_heads)
    except Exception as error:  # numbers that are none, and what a config raises for an entry that differs by layer
        raise UnsupportedModelError(
            f"{config.model_type}: head_dim must be one whole number for layers that share a rotation, got "
            f"{type(error).__name__}: {shortened(str(error))}; repair the config"
        ) from error
    raise UnsupportedModelError(
        f"{config.model_type}: num_attention_heads must be at least 1, got {config.num_attention_heads!r}; "
        f"repair the config"
    )


def unrotated(config: PreTrainedConfig) -> str:
    """The entry by which no layer of a config rotates, as it stands there; empty where layers rotate."""
    if getattr(config, "alibi", False):
        return "alibi true"
    kind = getattr(config, "position_embedding_type", None)
    if config.model_type.startswith("granite") and kind not in (None, "rope"):
        return f"position_embedding_type {kind!r}"
    if getattr(config, "use_mem_rope", True) is False:
        return "use_mem_rope false"
    stated = getattr(config, "no_rope_layers", None)
    if isinstance(stated, (list, tuple)) and stated and not any(stated):
        return "no_rope_layers all 0"
    return ""


@dataclass(frozen=True)
class Layer:
    """What one attention layer does with positions, by its config."""

    window: int  # tokens that it looks back; 0 where it reads the whole context
    rotates: bool

    def reads_beyond(self, length: int) -> bool:
        """Whether it sees distances beyond `length` tokens."""
        return not 0 < self.window <= length


def layers_of(config: PreTrainedConfig) -> list[Layer]:
    """The attention layers of a model, in order; those of recurrent or convolutional types are left out."""
    count = config.num_hidden_layers
    types = getattr(config, "layer_types", None)
    if not isinstance(types, (list, tuple)) or not types:
        windowed = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
        types = ["sliding_attention" if windowed else "full_attention"] * count
    rotating = getattr(config, "no_rope_layers", None)
    if not isinstance(rotating, (list, tuple)) or len(rotating) != len(types):
        rotating = [1] * len(types)
    found = []
    for index, kind in enumerate(types):
        if kind in RECURRENT:
            continue
        entry = getattr(config, WINDOWS[kind], None) if kind in WINDOWS else None
        window = entry if isinstance(entry, int) and not isinstance(entry, bool) and entry > 0 else 0
        rotates = bool(rotating[index]) and not unrotated(config)
        if config.model_type in LOCAL_ROTATION:
            rotates = rotates and (kind == "sliding_attention" or rotates_everywhere(config, index))
        found.append(Layer(window, rotates))
    return found


def kept_layers(config: PreTrainedConfig, layers: str) -> frozenset[int]:
    """The numbers of the layers that keep their rotation, though one module serves them and those that are rescaled.

    Layers of a window, where "full" asks for the others alone; none where the config states rotations by layer type.

    Raises:
        InvalidArgumentError: "full", and every layer looks at a window.
    """
    if layers != "full" or parts_of(config)[0].label:
        return frozenset()
    found = layers_of(config)
    if found and all(layer.window for layer in found):
        raise InvalidArgumentError(
            f"layers: must be 'global' or 'all' for a {config.model_type} of which every layer looks at a window of "
            f"tokens, got {layers!r}, which leaves nothing to rescale; leave it out"
        )
    types = getattr(config, "layer_types", None) or ()
    return frozenset(number for number, kind in enumerate(types) if kind in WINDOWS and getattr(config, WINDOWS[kind]))


def rotates_everywhere(config: PreTrainedConfig, index: int) -> bool:
    """Whether a layer that reads the whole context rotates in a family where such layers mostly do not."""
    if config.model_type in ("exaone4", "exaone_moe", "kolibri1"):
        return getattr(config, "sliding_window", None) is None
    if config.model_type == "cohere2_moe":  # its dense layers at the beginning
        return bool(config.mlp_layer_types[index] == "dense" and config.prefix_dense_sliding_window_pattern == 1)
    return False


def rotating_window(config: PreTrainedConfig, length: int) -> int:
    """The window in tokens of the layers that rotate, where no layer that sees farther than `length` does; else 0."""
    found = layers_of(config)
    far = [layer for layer in found if layer.reads_beyond(length)]
    if not far or any(layer.rotates for layer in far):
        return 0
    return max((layer.window for layer in found if layer.rotates), default=0)


def layers_meant(saved: Record, config: PreTrainedConfig) -> str:
    """The layers that a record names, as this version takes them.

    Where one rotation serves all layers, "global" was "all", also in families where only windows rotate: earlier
    versions did not refuse it there.
    """
    return "all" if saved.layers == "global" and not parts_of(config)[0].label else saved.layers


def require_effect(config: PreTrainedConfig, method: str, length: int, layers: str) -> str:
    """What a rescaled rotation changes that was not meant, in words; empty where there is nothing to say.

    A layer of a window within the original length sees no distance that
    it was not pretrained for, so rescaling it helps nothing.

    Raises:
        UnsupportedModelError: no layer rotates.
        InvalidArgumentError: none of the layers that read the whole context rotates, and not all layers were meant.
    """
    scales = method != UNSCALED
    found = layers_of(config)
    reason = unrotated(config)
    if not reason and found and not any(layer.rotates for layer in found):
        reason = f"layer_types {', '.join(sorted(set(config.layer_types)))}, of which none rotates in this family"
    anyway = config.model_type in BUILT_ANYWAY | LOCAL_ROTATION
    if reason and (scales or not anyway):
        remedy = (
            f"scale nothing and raise the limit alone: method {UNSCALED!r}"
            if anyway
            else "scale nothing and write a larger max_position_embeddings into the config, which is all it needs"
        )
        raise UnsupportedModelError(
            f"{config.model_type}: layers must rotate for {method} to act, got {reason}; {remedy}"
        )
    if not scales:
        return ""
    if label := parts_of(config)[0].label:
        windowed = label not in GLOBAL
        return (
            f"{config.model_type}: only layers of type {label} rotate, so {method} rescales those, and none that read "
            f"the whole context"
            if windowed
            else ""
        )
    far = [layer for layer in found if layer.reads_beyond(length)]
    local = [layer for layer in found if layer.rotates and not layer.reads_beyond(length)]
    if any(layer.rotates for layer in far):
        mixed = layers != "full" and len({layer.window > 0 for layer in found if layer.rotates}) > 1
        return (
            f"{config.model_type}: one rotary module serves sliding-window and full-attention layers, so "
            f"{method} rescales all of them"
            if mixed
            else ""
        )
    if not local:
        return ""
    if not far:
        window = max(layer.window for layer in local)
        return (
            f"{config.model_type}: every layer looks at a window of at most {window} tokens, within the original "
            f"length of {length}: {method} rescales them, and no distance in them grows with the context; method "
            f"{UNSCALED!r} raises the limit alone"
        )
    window = rotating_window(config, length)
    if layers != "all":
        raise InvalidArgumentError(
            f"layers: must be 'all' to rescale a {config.model_type} by {method}, whose layers that read the whole "
            f"context do not rotate, got {layers!r}, which leaves those of a window of {window} tokens, where no "
            f'distance grows; scale nothing and raise the limit alone: method "{UNSCALED}"'
        )
    return (
        f"{config.model_type}: only layers of a window of {window} tokens rotate, so {method} rescales those, and the "
        f"layers that read the whole context stay as they are"
    )


def limit_fields(config: PreTrainedConfig, length: int) -> dict[str, Any]:
    """The fields by which a config states how far it reaches."""
    fields: dict[str, Any] = {"max_position_embeddings": length}
    if getattr(config, "use_long_context", False):  # Zamba 2's class writes a maximum of its own over the stated one
        fields["use_long_context"] = False
    return fields


def spelling(part: Part, method: FixedMethod, geometry: Geometry) -> dict[str, Any]:
    """The fields that the config of this part gets for `method`, by field name.

    Raises:
        InvalidArgumentError: knobs that do not fit this geometry.
        UnsupportedModelError: a config that cannot state it.
    """
    config = part.config
    if stated_already(part, method, geometry):
        return {"rope_parameters": copy.deepcopy(config.rope_parameters)}
    parameters = method.rope_parameters(geometry)
    if not isinstance(parameters, dict) or "rope_type" not in parameters:
        raise InvalidArgumentError(
            f"{method.name}: rope_parameters must return a dict with a rope_type, got {shortened(parameters)}; "
            f"leave it out of the method to have the spectrum stated pair by pair"
        )
    # Transformers looks for yarn's truncate beside the layer types, where it is not
    unread = part.label and ("truncate" in parameters or (parameters["rope_type"] == "yarn" and not reads_yarn()))
    longrope_only = config.model_type in LONGROPE_ONLY and parameters["rope_type"] not in ("default", "longrope")
    if unread or longrope_only:
        parameters = method.pairwise_rope_parameters(geometry)
    kept = kept_parameters(config)
    if kept.get("original_max_position_embeddings", geometry.original_length) != geometry.original_length:
        # what counts queries from there stays, and a type that counts turns from there would be another
        parameters = method.pairwise_rope_parameters(geometry)
    parameters |= kept
    if parameters["rope_type"] != "yarn" and (sharper := softmax_parameters(config, method, geometry)):
        if parameters["rope_type"] == "default":  # which has no softmax scale
            parameters = method.pair_by_pair(geometry) | kept
        parameters |= sharper
    if pretrained_proportional(config) and method.name == "linear" and not method.resonance and method.factor != 1:
        # the one scaling that Transformers has for it
        parameters = {**config.rope_parameters, "factor": method.factor}
    if getattr(part.whole, "is_heterogeneous", False) and parameters["rope_type"] == "longrope":
        raise UnsupportedModelError(
            f"{config.model_type}: a method that Transformers has a type for is needed where heads differ by layer, "
            f"since it does not save longrope in such a config, got {method.name}; use linear"
        )
    fields: dict[str, Any] = {"rope_parameters": parameters}
    # A field of this name at the top level overrides the one in rope_parameters when the config is read again
    if hasattr(config, "original_max_position_embeddings"):
        fields["original_max_position_embeddings"] = geometry.original_length
    # Transformers' yarn and longrope read head_dim without looking whether it is None
    if getattr(config, "head_dim", 0) is None:
        fields["head_dim"] = geometry.head_dim
    if config.model_type in RECOMPUTING and parameters["rope_type"] != "default":
        factor = method.spectrum(geometry).attention_factor
        parameters |= {"short_mscale": factor, "long_mscale": factor}
        # its class copies this entry to the top level when it reads a config
        parameters["original_max_position_embeddings"] = geometry.original_length
        fields["original_max_position_embeddings"] = geometry.original_length
    return fields


def as_it_is(part: Part, target: int) -> dict[str, Any]:
    """The fields that the config of this part gets where its rotation depends on length and goes on as it is.

    Raises:
        AlreadyScaledError: it is counted from the maximum, which would be another.
    """
    config = part.config
    parameters = copy.deepcopy(config.rope_parameters)
    if target != config.max_position_embeddings:
        if rope_type_of(config) == "dynamic":
            require_fixed(part)
        if config.model_type not in RECOMPUTING:  # Transformers works the factor out from the maximum
            parameters.setdefault("attention_factor", todays_spectrum(part)[1])
    return {"rope_parameters": parameters}


@cache
def reads_yarn() -> bool:
    """Whether this Transformers reads a config again that states yarn for a layer type.

    Up to 5.8 it looks for the original length beside the layer types, where it is not.
    """
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "original_max_position_embeddings": 64}
    try:
        Gemma3TextConfig(
            max_position_embeddings=128, rope_parameters={"full_attention": yarn, "sliding_attention": sliding}
        )
    except KeyError:
        return False
    return True


def softmax_parameters(config: PreTrainedConfig, method: Method, geometry: Geometry) -> dict[str, Any]:
    """The entries that state the softmax scale of latent attention, beside a type that has none of its own.

    A base that is scaled has one, and so may the method (yarn's `mscale_all_dim`); one is multiplied with the other.

    Raises:
        InvalidArgumentError: a scale, and a factor of 1 to state it by.
    """
    if not hasattr(config, "kv_lora_rank"):
        return {}
    factor = getattr(method, "factor", None) or 1.0
    today = softmax_factor(config) if geometry.inv_freq else 1.0
    own = (yarn_mscale(factor, getattr(method, "mscale_all_dim", None) or 0.0)) ** 2
    if today * own == 1:
        return {}
    if not isinstance(method, FixedMethod):  # which states no factor of its own
        return {name: config.rope_parameters[name] for name in ("factor", "mscale_all_dim")}
    if factor == 1:
        raise InvalidArgumentError(
            f"{method.name}: factor must be above 1 to compose with a softmax scale (mscale_all_dim="
            f"{shortened(config.rope_parameters['mscale_all_dim'])}), which is stated by it, got 1; give a larger one"
        )
    return {"factor": factor, "mscale_all_dim": (math.sqrt(today * own) - 1) / (0.1 * math.log(factor))}


def stated_already(part: Part, method: FixedMethod, geometry: Geometry) -> bool:
    """Whether a base that is scaled already states the spectrum of `method`, whatever the maximum.

    Stated otherwise it would lose its last bits, which far positions multiply.
    """
    rope = part.config.rope_parameters
    # without these Transformers works a factor out from the maximum, which a patch writes
    fixed = {"longrope": "attention_factor", "proportional": "rope_theta"}.get(rope_type_of(part.config), "factor")
    if not geometry.inv_freq or rope.get(fixed) is None:
        return False
    spectrum, (inv_freq, attention_factor) = method.spectrum(geometry), todays_spectrum(part)
    return (
        isinstance(spectrum, Spectrum)
        and torch.equal(spectrum.inv_freq, inv_freq)
        and spectrum.attention_factor == attention_factor
    )


def late_spelling(part: Part, method: Method, geometry: Geometry) -> dict[str, Any]:
    """The fields that the config of this part gets for a method that Transformers cannot carry out, by field name."""
    config = part.config
    parameters = {"rope_type": LATE_TYPE, "rope_theta": theta_of(config), **kept_parameters(config)}
    if isinstance(method, FixedMethod):  # of fixed frequencies, beside what acts in attention
        fixed = spelling(part, method, geometry)["rope_parameters"]
        if softmax_factor(stating(config, fixed)) != 1:
            parameters |= {name: fixed[name] for name in ("factor", "mscale_all_dim")}
    else:
        parameters |= softmax_parameters(config, method, geometry)
    if config.model_type in RECOMPUTING:  # which reads them at every call of any type but the default one
        parameters |= {"short_mscale": 1.0, "long_mscale": 1.0}
        parameters["original_max_position_embeddings"] = geometry.original_length
    return {"rope_parameters": parameters}


def kept_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of `rope_parameters` that no method changes."""
    rope = config.rope_parameters
    kept = {name: copy.copy(rope[name]) for name in KEPT_KEYS if name in rope}
    if rope_type_of(config) == "proportional":  # which pairs rotate is stated by the frequencies
        kept.pop("partial_rotary_factor", None)
    # what scales queries by their position counts from the original length, whatever the type
    if QUERY_GROWTH in kept:
        stated = config.rope_parameters.get("original_max_position_embeddings")
        kept["original_max_position_embeddings"] = read_original_length(config)[0] if stated is None else stated
    return kept


def as_reloaded(part: Part, fields: dict[str, Any], method: FixedMethod, geometry: Geometry) -> Spectrum:
    """The spectrum of `method` as Transformers will compute it when this part's config has these fields.

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
    # shallow: only fields of its own are set, and the computation takes a copy
    saved = stating(part.config, fields["rope_parameters"])
    for name, value in fields.items():
        if name != "rope_parameters":
            setattr(saved, name, value)
    inv_freq, attention_factor = todays_spectrum(replace(part, config=saved))
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


def find_rotaries(model: nn.Module, parts: list[Part]) -> list[Rotary]:
    """The modules that turn positions into cos and sin, with buffers for these parts: one, or one a layer.

    Those of a vision or audio tower have configs of another class, and are left alone.

    Raises:
        UnsupportedModelError: none, several with configs of their own, or one that is built otherwise than this
            version knows.
    """
    config, whole = parts[0].config, parts[0].whole
    buffers = [f"{part.prefix}inv_freq" for part in parts]
    found = [
        Rotary(name, module)
        for name, module in model.named_modules()
        if any(isinstance(getattr(module, buffer, None), Tensor) for buffer in buffers)
        and isinstance(getattr(module, "config", whole), type(whole))
    ]
    if not found or (len(found) > 1 and any(rotary.module.config is not whole for rotary in found)):
        names = ", ".join(rotary.name for rotary in found) or "none"
        raise UnsupportedModelError(
            f"{config.model_type}: one rotary module is needed, got {len(found)} ({names}); "
            f"pass a model whose layers share one"
        )
    own = [f"{part.prefix}{name}" for part in parts for name in ("inv_freq", "original_inv_freq", "attention_scaling")]
    for rotary in found:
        for attribute in (*own, "rope_type"):
            if not hasattr(rotary.module, attribute):
                raise UnsupportedModelError(
                    f"{config.model_type}: the rotary module {rotary.name!r} must have {attribute}, got "
                    f"{type(rotary.module).__name__} without it; use a model built by Transformers 5"
                )
        if any(getattr(rotary.module, buffer).is_meta for buffer in buffers):
            raise UnsupportedModelError(
                f"{config.model_type}: the model must have its weights, got a rotary module on the meta device; "
                f"load the weights first"
            )
    return found


def live_spectrum(rotary: Any, prefix: str, last: int) -> Spectrum:
    """What a live rotary module turned its latest text by, whose last token stood at `last`, on the CPU.

    `prefix` begins the names of its buffers.
    """
    if rotary.config.model_type in RECOMPUTING:  # which reads neither its buffers nor the factor beside them
        rope = rotary.config.rope_parameters
        inv_freq, factor = rotary.rope_init_fn(rotary.config)
        if rope_type_of(rotary.config) != "default":
            factor = rope["long_mscale" if last >= rope["original_max_position_embeddings"] else "short_mscale"]
    else:
        inv_freq, factor = getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}attention_scaling")
    return Spectrum(inv_freq.detach().float().cpu().clone(), float(factor))


def softmax_factor(config: PreTrainedConfig) -> float:
    """What latent attention multiplies into its softmax besides: 1 where the config of this part asks for nothing.

    YaRN's mscale, squared because queries and keys both get it. (DeepSeek-V2, arXiv:2405.04434, appendix)
    """
    rope = config.rope_parameters
    scale = rope.get("mscale_all_dim")
    if not hasattr(config, "kv_lora_rank") or rope_type_of(config) == "default" or not scale:
        return 1.0
    return yarn_mscale(as_float(rope.get("factor")), as_float(scale)) ** 2


def yarn_mscale(factor: float, scale: float) -> float:
    """YaRN's attention factor, 0.1 scale ln(factor) + 1."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def find_softmax(model: nn.Module, part: Part, parameters: dict[str, Any]) -> list[tuple[nn.Module, float]]:
    """The attention layers whose softmax scale is another with these `rope_parameters`, and that scale.

    Raises:
        UnsupportedModelError: layers whose scale is not what their config says.
    """
    config = part.config
    before, after = softmax_factor(config), softmax_factor(stating(config, parameters))
    if before == after:
        return []
    found = []
    for name, module in model.named_modules():
        if not (hasattr(module, "qk_head_dim") and isinstance(getattr(module, "scaling", None), float)):
            continue
        plain = module.qk_head_dim ** (-0.5)
        if abs(module.scaling - plain * before) > 1e-6 * plain:
            raise UnsupportedModelError(
                f"{config.model_type}: {name}.scaling must be what its config says ({plain * before:g}), got "
                f"{module.scaling:g}; load the model from this config"
            )
        root = math.sqrt(after)
        found.append((module, plain * root * root if after != 1 else plain))  # in the order of Transformers
    if not found:
        raise UnsupportedModelError(
            f"{config.model_type}: mscale_all_dim needs layers with a softmax scale of their own, got none; leave "
            f"mscale_all_dim out"
        )
    return found


def require_matching(rotary: Rotary, part: Part) -> None:
    """Refuse a live module whose frequencies are not what its config says.

    Raises:
        UnsupportedModelError: other pairs or other frequencies, as after a config was edited on a loaded model.
    """
    config = part.config
    live: Tensor = getattr(rotary.module, f"{part.prefix}inv_freq")
    expected = todays_spectrum(part)[0].to(live.device)
    if live.shape != expected.shape:
        raise UnsupportedModelError(
            f"{config.model_type}: the rotary module {rotary.name!r} must have {len(expected)} pairs as the config "
            f"says, got {tuple(live.shape)}; load the model from this config"
        )
    if rope_type_of(config) in ("dynamic", "longrope") and not by_alpha(config):
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
