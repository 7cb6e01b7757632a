"""What is wrong with the positions of a checkpoint, an adapter or a loaded model, and the remedy.

Files are read as they are written, because reading a config through Transformers fills in and renames what is missing.
"""

import copy
import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ropescale.built import built_rotation
from ropescale.checkpoint import (
    CONFIG,
    VOCABULARIES,
    first_line,
    lacks_tokenizer,
    read_config,
    weight_files,
)
from ropescale.checkpoints import resolve
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError, shortened
from ropescale.extension import extended_again
from ropescale.families.catalogue import family_of
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.layers import rotating_window, unrotated
from ropescale.families.modules import find_rotaries
from ropescale.families.parts import UNSCALED, parts_of, text_of
from ropescale.families.reading import part_geometry
from ropescale.families.support import require_family, require_supported
from ropescale.families.today import QUERY_GROWTH, rope_type_of, todays_spectrum
from ropescale.files import read_json
from ropescale.finding import Finding
from ropescale.geometry import as_float
from ropescale.injection.patch import patch_of
from ropescale.limits import LIMITS, outdated
from ropescale.records import EXPORT_FIELD, RECORD_FIELD, Record, saved_record
from ropescale.shards import SAFE, TORCH, is_table, read_index
from ropescale.unread import unread, unread_shares
from ropescale.wrappers import bare

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_RECORD = "ropescale.json"  # beside it: the record of the model that the adapter was trained on
# Types of adapters that act beside the layers of their base, where PEFT alone runs them
BESIDE = (
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
)
ORIGINAL = "original_max_position_embeddings"
ANCHORED = ("llama3", "longrope", "yarn")  # types that count turns over the original length
# What Transformers reads for each type beside what it reads for all (its validation, modeling_rope_utils.py)
READ = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim", ORIGINAL, "truncate"),
    "longrope": ("short_factor", "long_factor", ORIGINAL, "attention_factor", "factor"),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "proportional": ("factor",),
    LATE_TYPE: (),
}
READ_ALWAYS = ("mrope_interleaved", "mrope_section", "partial_rotary_factor", "rope_theta", "rope_type", "type")
# Entries that some families read beside these
FAMILY_KEYS = frozenset({"alpha", "llama_4_scaling_beta", "long_mscale", "max_position_embeddings", "short_mscale"})
# What latent attention makes its softmax scale of, whatever type is scaled by
SOFTMAX = ("factor", "mscale_all_dim")
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("long_factor", "short_factor"),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor"),
}
# Names of types that other code has, or had, for one of Transformers
RENAMED = {"deepseek_yarn": "yarn", "mrope": "default", "su": "longrope"}
# Entries that other code writes for itself and that change nothing where Transformers computes
HARMLESS = {"attn_factor": (1,), "extrapolation_factor": (1,), "finetuned": (False, True)}
# Beside HunYuan's alpha, which raises theta alone: entries that it is published with, at what changes nothing
HARMLESS_BESIDE_ALPHA = {"beta_fast": (32,), "beta_slow": (1,), "mscale": (1,), "mscale_all_dim": (1,)}
# What stands in a config about rotation and length; the rest of it can be read without
ABOUT_ROTATION = (
    ORIGINAL,
    RECORD_FIELD,
    "max_position_embeddings",
    "partial_rotary_factor",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
)
# Findings after which nothing can be computed from the entries that they name
BLOCKING = ("bad-number", "missing-key", "rope-parameters", "unknown-type")
EXACT = 1e-5  # relative difference of frequencies that float32 arithmetic can make
HALF = 1e-2  # that rounding to bfloat16 and back can make


def diagnose(path_or_model: str | Path | nn.Module) -> list[Finding]:
    """What is wrong with the positions of a saved model, an adapter's folder or a loaded model; empty if nothing is.

    Nothing is changed and no weight is loaded. A checkpoint scaled by whatever method is not a fault in itself: only
    what contradicts itself, is ignored, lost or too short.

    Example:
        >>> import ropescale
        >>> ropescale.diagnose("tiny")
        []

    Raises:
        CheckpointError: no checkpoint there, or files that cannot be read at all.
        UnsupportedModelError: not a family of this version.
        InvalidArgumentError: neither a path nor a model.
    """
    if isinstance(path_or_model, nn.Module):
        return _of_model(bare(path_or_model))
    if not isinstance(path_or_model, (str, Path)) or "\0" in str(path_or_model):
        raise InvalidArgumentError(
            f"diagnose: path_or_model must be a path, a hub id, a short name or a loaded model, got "
            f"{shortened(path_or_model)}; give one of them"
        )
    folder = Path(resolve(str(path_or_model)))
    if not folder.is_dir():
        raise CheckpointError(
            f"{path_or_model}: must be the folder of a checkpoint or of an adapter, got no folder; check the path"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return _of_adapter(folder)
    return _of_checkpoint(folder)


def unserved(path: str | Path) -> list[Finding]:
    """What a checkpoint lacks besides positions to be evaluated, trained or served: a tokenizer.

    Nothing is said of an adapter, whose base has one, nor of a config without weights, which nobody serves.
    """
    folder = Path(resolve(str(path)))
    weights = (one for pattern in ("*", "*/*") for one in folder.glob(pattern) if one.suffix in (SAFE, TORCH))
    if (folder / ADAPTER_CONFIG).is_file() or not lacks_tokenizer(folder) or not any(weights):
        return []
    return [
        Finding(
            check="no-tokenizer",
            where=folder.name,
            rule=f"a tokenizer must lie beside the weights to evaluate, train or serve them, got none of "
            f"{', '.join(VOCABULARIES)}",
            remedy="put the tokenizer files of the model there (tokenizer.save_pretrained)",
        )
    ]


def _of_checkpoint(folder: Path) -> list[Finding]:
    raw = read_json(folder / CONFIG)
    if not raw:
        raise CheckpointError(f"{folder}: must hold a {CONFIG}, got none or an empty one; check the path")
    text = _text(raw)
    refusal: RopescaleError | None = None
    config: PreTrainedConfig | None = None
    try:
        config = text_of(read_config(str(folder), trust_remote_code=False))
        require_family(config)
    except RopescaleError as error:
        refusal = error
    found = list(_stated(text, config))
    if config is not None and refusal is None:
        found += _of_config(config, text, found, CONFIG)
        found += _recorded(config, CONFIG) if _stating_types(config) else ()
    elif found or refusal is None:
        found += _unread_beside(text)
    else:
        raise refusal
    if maximum := _whole(text.get("max_position_embeddings")):
        found += _limits(folder, text, maximum)
    found += _weights(folder, None if refusal or _blocked(found) else config)
    return found


def _of_model(model: nn.Module) -> list[Finding]:
    config: Any = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise InvalidArgumentError(
            f"diagnose: path_or_model must be a Transformers model with a config, got {type(model).__name__}; load it "
            f"first, for instance with ropescale.load(path)"
        )
    config = text_of(config)
    require_family(config)
    text = config.to_dict()
    found = list(_stated(text, config))
    found += _of_config(config, text, found, "config")
    if patch_of(model) is None and _stating_types(config):
        found += _recorded(config, "config")
    found += _live(model, config, comparable=not _blocked(found))
    return found


def _blocked(found: list[Finding]) -> bool:
    """Whether something was found after which frequencies cannot be computed."""
    return any(one.check in BLOCKING or (one.check == "theta-lost" and one.where != "rope_scaling") for one in found)


def _of_config(config: PreTrainedConfig, text: dict[str, Any], found: list[Finding], where: str) -> Iterator[Finding]:
    """What comes of a config that can be read, beside what was found by its own words."""
    blocked = _blocked(found)
    if not blocked:
        computed = list(_computed(config, where))
        yield from computed
        blocked = bool(computed)
    record, pretrained = None, config
    try:
        record = saved_record(config)
        if record is not None:
            pretrained = copy.deepcopy(config)
            record.restore(pretrained)
    except RopescaleError:
        blocked = True  # the record's own check tells of it
    if _stating_types(config) and _stating_types(pretrained):
        yield from unread(text, config, pretrained, record)
        yield from _unturned(config, text)
    if not blocked:
        shares = list(unread_shares(text, config))
        yield from shares
        if not shares:
            yield from _as_built(config, where)


def _stating_types(config: PreTrainedConfig) -> bool:
    """Whether every part of a config states a rotation by a named type."""
    ropes = [getattr(part.config, "rope_parameters", None) for part in parts_of(config)]
    return all(isinstance(rope, dict) and isinstance(rope.get("rope_type", ""), str) for rope in ropes)


def _unread_beside(text: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with a config that Transformers refuses, beside its rotation, which has a fault of its own."""
    model_type = text.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return
    rest = {name: value for name, value in text.items() if name not in ABOUT_ROTATION}
    if maximum := _whole(text.get("max_position_embeddings")):
        rest["max_position_embeddings"] = maximum
    try:
        config = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(rest))
    except Exception as error:  # config classes raise whatever their own code runs into
        yield Finding(
            check="config",
            where=CONFIG,
            rule=f"must be one that Transformers reads, got {type(error).__name__}: {first_line(error)}",
            remedy="write the value that the checkpoint was published with",
        )
        return
    if _stating_types(config):
        yield from unread(text, config, config, None)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter's folder says of it."""

    kind: str  # PEFT's name of its type
    base: str  # as its config names it; empty where it does not
    record: Record | None  # None of a plain one

    def __str__(self) -> str:
        of = f"a PEFT adapter of type {self.kind} for {self.base or 'a base that it does not name'}"
        if self.record is not None:
            return f"{of}, trained with {self.record.method} to {self.record.target_length:,} tokens"
        if self.kind in BESIDE:
            return f"{of}, which acts beside the layers of its base: PEFT alone runs it"
        return (
            f"{of}, without a {ADAPTER_RECORD}: it stands on its base as that is, and eval --adapters, export "
            f"--adapter and train --adapter extend the base under it"
        )


def adapter_in(path: str | Path) -> Adapter | None:
    """What an adapter says of itself; None of what is none.

    Raises:
        CheckpointError: a damaged config or record.
    """
    folder = Path(resolve(str(path)))
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    said = read_json(folder / ADAPTER_CONFIG)
    kind, base = said.get("peft_type"), said.get("base_model_name_or_path")
    there = (folder / ADAPTER_RECORD).is_file()
    return Adapter(
        kind=kind if isinstance(kind, str) else "unknown",
        base=base if isinstance(base, str) else "",
        record=Record.from_dict(read_json(folder / ADAPTER_RECORD)) if there else None,
    )


def _of_adapter(folder: Path) -> list[Finding]:
    """An adapter beside its base: what it was trained on must be what it will be put on."""
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return [
            Finding(
                check="adapter-base",
                where=f"{ADAPTER_CONFIG}: base_model_name_or_path",
                rule=f"must name the model that the adapter belongs to, got {shortened(base)}",
                remedy="write the path or hub id of the base there",
            )
        ]
    try:
        config = text_of(read_config(resolve(base), trust_remote_code=False))
    except CheckpointError:
        return [
            Finding(
                check="adapter-base",
                where=f"{ADAPTER_CONFIG}: base_model_name_or_path",
                rule=f"must name a model that is found here or on a hub that is reached, got {shortened(base)}",
                remedy="write the path or hub id of the base there, or give it to merge and export",
            )
        ]
    require_supported(config)
    on_base = saved_record(config)
    if not (folder / ADAPTER_RECORD).is_file():
        if on_base is None:
            return []
        return [
            Finding(
                check="adapter-record",
                where=ADAPTER_RECORD,
                rule=f"must say how the base was scaled when the adapter was trained, got no such file beside a base "
                f"that is saved with {on_base.method_instance()}",
                remedy=f"copy the record (the entry {RECORD_FIELD!r} of the config that it was trained on) into it",
            )
        ]
    trained = Record.from_dict(read_json(folder / ADAPTER_RECORD))
    if on_base is not None:
        if _deeds(trained) == _deeds(on_base):
            return []
        return [
            Finding(
                check="adapter-scaling",
                where=ADAPTER_RECORD,
                rule=f"must be the record of the base, got an adapter trained with {trained.method_instance()} from "
                f"{trained.original_length} to {trained.target_length} tokens for a base saved with "
                f"{on_base.method_instance()} from {on_base.original_length} to {on_base.target_length}",
                remedy="put it on the base that it was trained on, or name the unscaled base in adapter_config.json",
            )
        ]
    before = {"rope_parameters": trained.before["rope_parameters"]}
    today = {"rope_parameters": config.rope_parameters}
    if before == today:
        return []
    return [
        Finding(
            check="adapter-scaling",
            where=ADAPTER_RECORD,
            rule=f"must start from the rope_parameters of the base, got {shortened(before['rope_parameters'])} for a "
            f"base with {shortened(today['rope_parameters'])}",
            remedy="put the adapter on the base that it was trained on",
        )
    ]


def _deeds(record: Record) -> tuple[Any, ...]:
    """What a record says was done, without when and by which versions."""
    return record.method, record.knobs, record.original_length, record.target_length, record.layers, record.log_n


def _text(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a raw config that is about text."""
    inner = raw.get("text_config")
    return inner if isinstance(inner, dict) and "rope_parameters" not in raw else raw


def _whole(value: Any) -> int | None:
    """A number of tokens, whether it is written as a whole number or as a float; None where it is neither."""
    number = as_float(value)
    return int(number) if number >= 1 and number.is_integer() else None


def _stated(text: dict[str, Any], config: PreTrainedConfig | None) -> Iterator[Finding]:
    """What is wrong in the config by its own words; `config` is what Transformers makes of it, if it reads it."""
    maximum = text.get("max_position_embeddings")
    if maximum is not None and (isinstance(maximum, bool) or not isinstance(maximum, int) or maximum < 1):
        yield Finding(
            check="maximum",
            where="max_position_embeddings",
            rule=f"must be a whole number of tokens, got {shortened(maximum)}",
            remedy=f"write {_whole(maximum)}" if _whole(maximum) else "write the length that the model reads",
        )
    parameters, legacy = text.get("rope_parameters"), text.get("rope_scaling")
    both = parameters and legacy and _untyped(parameters) != _untyped(legacy)
    both = both and not text.get(EXPORT_FIELD)  # for an engine both are written, and a loaded config may keep the old
    if both:
        yield from _two_dicts(parameters, legacy, text.get("rope_theta"))
    key = "rope_parameters" if parameters and not both else "rope_scaling"
    rope = legacy if both else parameters or legacy or {}
    if not isinstance(rope, dict):
        yield Finding(
            check="rope-parameters",
            where=key,
            rule=f"must be an object, got {shortened(rope)}",
            remedy="restore the config of the checkpoint",
        )
        return
    about = dict(text)
    if config is not None and text.get("rope_theta") == getattr(type(config), "rope_theta", None):
        about.pop("rope_theta", None)  # a field that some classes write into every config, whatever rotates
    blocks = {label: block for label, block in rope.items() if block is None or isinstance(block, dict)}
    # Transformers 5.14 writes entries of no label beside those of DeepSeek V4, and reads them nowhere
    labelled = len(blocks) == len(rope) or (config is not None and bool(parts_of(config)[0].label))
    nested = bool(blocks) and labelled
    for label, block in (blocks if nested else {"": rope}).items():
        if block:
            where = f"{key}.{label}" if label else key
            rope_type = _type(block, label, text, config)
            yield from _block(where, block, rope_type, about, nested=nested, legacy=not parameters or bool(both))


def _untyped(rope: Any) -> Any:
    """Rope parameters without the old name of their type, where it says what the new one says."""
    if isinstance(rope, dict) and rope.get("type") == rope.get("rope_type"):
        return {name: value for name, value in rope.items() if name != "type"}
    return rope


def _two_dicts(parameters: Any, legacy: Any, top: Any) -> Iterator[Finding]:
    """Two places for one thing: Transformers takes rope_scaling, and the theta that goes with it."""
    before = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    after = legacy.get("rope_theta", top) if isinstance(legacy, dict) else top
    lost = before is not None and before != after
    yield Finding(
        check="theta-lost" if lost else "two-scalings",
        where="rope_scaling",
        rule=f"must not stand beside rope_parameters, which Transformers 5 then drops"
        f"{' with their rope_theta' if lost else ''}, got {shortened(legacy)} beside {shortened(parameters)}",
        remedy="move its entries into rope_parameters and remove rope_scaling",
    )


def _type(block: dict[str, Any], label: str, text: dict[str, Any], config: PreTrainedConfig | None) -> Any:
    """The type that Transformers takes a block for: some families read other names than those of Transformers."""
    stated = block.get("rope_type", block.get("type", "default"))
    for part in parts_of(config) if config is not None and _stating_types(config) else ():
        if label in ("", part.label) and rope_type_of(part.config) in READ:
            return rope_type_of(part.config)
    if family_of(str(text.get("model_type"))).longrope_only and stated == "yarn":
        return "longrope"
    return stated


def _block(
    where: str, block: dict[str, Any], rope_type: Any, text: dict[str, Any], *, nested: bool, legacy: bool
) -> Iterator[Finding]:
    """What is wrong with the rope parameters of one part, which Transformers takes for `rope_type`."""
    if "rope_type" in block and block.get("type") not in (None, block["rope_type"], rope_type):
        yield Finding(
            check="two-types",
            where=f"{where}.type",
            rule=f"must agree with rope_type, which alone counts, got {shortened(block['type'])} beside "
            f"{shortened(block['rope_type'])}",
            remedy="remove the one that is wrong",
        )
    if not isinstance(rope_type, str) or rope_type not in READ:
        known = RENAMED.get(rope_type) if isinstance(rope_type, str) else None
        near = [known] if known else difflib.get_close_matches(str(rope_type), READ, n=1)
        yield Finding(
            check="unknown-type",
            where=f"{where}.rope_type",
            rule=f"must be one of {', '.join(sorted(READ))}, got {shortened(rope_type)}"
            + (", another name, with which Transformers does not load this family" if known else ""),
            remedy=f"write {near[0]!r}" + ("" if known else " if that is meant")
            if near
            else "restore the config of the checkpoint",
        )
        return
    yield from _theta(where, block, text.get("rope_theta"), legacy=legacy, nested=nested)
    latent = text.get("kv_lora_rank") is not None and rope_type != "default" and block.get("mscale_all_dim")
    yield from _keys(where, rope_type, block, nested=nested, besides=SOFTMAX if latent else ())
    yield from _numbers(where, rope_type, block)
    if rope_type in ANCHORED and not text.get(EXPORT_FIELD):  # engines are told lengths in words of their own
        yield from _lengths(where, rope_type, block, text)


def _theta(where: str, block: dict[str, Any], top: Any, *, legacy: bool, nested: bool) -> Iterator[Finding]:
    """Whether theta is there, once, and a number; `top` is the one beside the rope parameters, as in old configs."""
    if "rope_theta" not in block and top is None:
        if legacy:  # families have defaults, which old configs leave out
            return
        rule = "must be stated, got none: Transformers 5 takes the default of the family"
    elif not 1 < as_float(block.get("rope_theta", top)) < math.inf:
        rule = f"must be a number above 1, got {shortened(block.get('rope_theta', top))}"
    elif "rope_theta" in block and top not in (None, block["rope_theta"]) and not nested:
        yield Finding(
            check="two-thetas",
            where="rope_theta",
            rule=f"must agree with {where}.rope_theta, which alone counts, got {shortened(top)} beside "
            f"{shortened(block['rope_theta'])}",
            remedy="remove the one that is wrong",
        )
        return
    else:
        return
    yield Finding(
        check="theta-lost",
        where=f"{where}.rope_theta",
        rule=rule,
        remedy="write the theta of the checkpoint as it was published",
    )


def _keys(
    where: str, rope_type: str, block: dict[str, Any], *, nested: bool, besides: tuple[str, ...]
) -> Iterator[Finding]:
    """Entries that are ignored, and ones that are missing; `besides` are read whatever the type."""
    read = (*READ_ALWAYS, *READ[rope_type], *besides)
    needed = NEEDED.get(rope_type, ())
    for name in needed:
        if block.get(name) is None:
            yield Finding(
                check="missing-key",
                where=f"{where}.{name}",
                rule=f"must be stated for rope_type {rope_type!r}, got none",
                remedy="write it as the checkpoint was published or trained",
            )
    known = {name for names in READ.values() for name in names}
    harmless = HARMLESS | HARMLESS_BESIDE_ALPHA if "alpha" in block else HARMLESS
    for name, value in block.items():
        if name in read or name in FAMILY_KEYS or value is None or value in harmless.get(name, ()):
            continue
        # queries grow beyond it, and PhiMoE changes factors at it, whatever the type
        if name == ORIGINAL and ("llama_4_scaling_beta" in block or "short_mscale" in block):
            continue
        if name == "attn_factor" and rope_type == "yarn" and as_float(value) > 0:
            yield _attn_factor(where, block)
            continue
        near = [other for other in difflib.get_close_matches(name, read, n=1, cutoff=0.7) if other not in block]
        instead = f"rename it to {near[0]}" if near and name not in known else "remove it"
        if name == "factor" and not {"rope_type", "type"} & set(block):
            instead = "write the rope_type that it belongs to ('linear', 'dynamic', 'yarn')"
        yield Finding(
            check="ignored-key",
            where=f"{where}.{name}",
            rule=f"must be an entry that Transformers reads for rope_type {rope_type!r}, got {shortened(value)}, "
            f"which it ignores",
            remedy=f"{instead}; it reads {', '.join(sorted({*READ[rope_type], 'rope_theta'}))}",
        )
    if rope_type != "yarn":
        return
    scales = [name for name in ("mscale", "mscale_all_dim") if block.get(name)]
    if len(scales) == 1 and block.get("attention_factor") is None:
        # DeepSeek's own code takes 1 for mscale and 0 for mscale_all_dim where they are not stated
        over = _sharpened(block, block.get("mscale") or 1.0)
        under = _sharpened(block, block.get("mscale_all_dim") or 0.0)
        yield Finding(
            check="ignored-key",
            where=f"{where}.{scales[0]}",
            rule="must come with its fellow (mscale and mscale_all_dim), got one alone, which Transformers ignores in "
            "the attention factor",
            remedy=f"state both, or write attention_factor {_written(over / under)}, as DeepSeek's code reads it",
        )
    if nested and block.get("truncate") is False:
        yield Finding(
            check="ignored-key",
            where=f"{where}.truncate",
            rule="must be true where each layer type has parameters of its own, got False, which Transformers looks "
            "for elsewhere",
            remedy="remove it, or patch with ropescale, which states the frequencies pair by pair",
        )


def _sharpened(block: dict[str, Any], mscale: Any) -> float:
    """YaRN's attention factor, 0.1 mscale ln(factor) + 1."""
    factor = as_float(block.get("factor"))
    return 0.1 * as_float(mscale) * math.log(factor) + 1 if 1 < factor < math.inf else 1.0


def _written(number: float) -> str:
    """A number as a config holds it, a float, without the last bits of the arithmetic."""
    return repr(float(f"{number:.10g}"))


def _attn_factor(where: str, block: dict[str, Any]) -> Finding:
    """A multiplier on YaRN's own attention factor, which Transformers' attention_factor replaces as a whole."""
    own = _sharpened(block, 1.0)
    if block.get("mscale") and block.get("mscale_all_dim"):
        own = _sharpened(block, block["mscale"]) / _sharpened(block, block["mscale_all_dim"])
    meant = own * as_float(block["attn_factor"])
    stated = block.get("attention_factor")
    return Finding(
        check="ignored-key",
        where=f"{where}.attn_factor",
        rule=f"must be stated as attention_factor, got {shortened(block['attn_factor'])}, which multiplies yarn's own "
        f"attention factor ({own:.10g}) where it is read, as in the YaRN code and vLLM, and which Transformers "
        f"ignores: it takes {own if stated is None else as_float(stated):.10g}",
        remedy=f"write attention_factor {_written(meant)} in its place"
        if stated is None
        else f"remove it if {shortened(stated)} is meant, or write attention_factor {_written(meant)}",
    )


def _numbers(where: str, rope_type: str, block: dict[str, Any]) -> Iterator[Finding]:
    """Values that no frequencies can be computed from."""

    def wrong(name: str, rule: str) -> Finding:
        return Finding(
            check="bad-number",
            where=f"{where}.{name}",
            rule=f"must be {rule}, got {shortened(block[name])}",
            remedy="write the value that the checkpoint was published or trained with",
        )

    if block.get("factor") is not None and "factor" in READ[rope_type]:
        factor = as_float(block["factor"])
        if not (factor >= 1 and math.isfinite(factor)):
            yield wrong("factor", "a number of at least 1")
    if block.get("attention_factor") is not None and not 0 < as_float(block["attention_factor"]) < math.inf:
        yield wrong("attention_factor", "a number above 0")
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        # equal bounds are a step in the place of a ramp, as Kimi K2 and Llama 4 Scout have it
        both = block.get(low) is not None and block.get(high) is not None
        if both and not 0 < as_float(block[low]) <= as_float(block[high]) < math.inf:
            yield wrong(high, f"a number of at least {low} ({shortened(block[low])})")
    for name in ("short_factor", "long_factor"):
        if rope_type == "longrope" and block.get(name) is not None:
            values = block[name]
            if not isinstance(values, list) or not values or not all(0 < as_float(one) < math.inf for one in values):
                yield wrong(name, "a list of numbers above 0, one per pair")


def _lengths(where: str, rope_type: str, block: dict[str, Any], text: dict[str, Any]) -> Iterator[Finding]:
    """Whether original length, maximum and factor say one thing."""
    if rope_type == "longrope" and QUERY_GROWTH in block:
        return  # the length that queries grow from, which is not what pairs stated one by one were scaled from
    top, inner = text.get(ORIGINAL), block.get(ORIGINAL)
    maximum = text.get("max_position_embeddings")
    factor = as_float(block.get("factor"))
    stated = [value for value in (top, inner) if value is not None]
    if not stated:
        reached = as_float(maximum)
        before = f": {maximum} if that was left as it was, {reached / max(factor, 1):g} if the factor is in it"
        yield Finding(
            check="original-length",
            where=f"{where}.{ORIGINAL}",
            rule=f"must be stated for rope_type {rope_type!r}, got none: Transformers takes max_position_embeddings "
            f"({shortened(maximum)}) for the length before scaling",
            remedy="write the length that the model was pretrained for"
            + (before if factor > 1 and math.isfinite(reached) else ""),
        )
        return
    if len(stated) == 2 and top != inner:
        yield Finding(
            check="original-length",
            where=ORIGINAL,
            rule=f"must agree with {where}.{ORIGINAL}, which it overrides, got {shortened(top)} beside "
            f"{shortened(inner)}",
            remedy="write the length that the model was pretrained for in both places",
        )
    for name, value in ((ORIGINAL, top), (f"{where}.{ORIGINAL}", inner)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            whole = _whole(value)
            yield Finding(
                check="original-length",
                where=name,
                rule=f"must be a whole number of tokens, got {shortened(value)}",
                remedy=f"write {whole}" if whole else "write the length that the model was pretrained for",
            )
    lengths = [length for value in stated if (length := _whole(value))]
    at_fault = [_maximum(rope_type, length, factor, _whole(maximum)) for length in lengths]
    faults = [fault for fault in at_fault if fault is not None]
    if faults and len(faults) == len(at_fault):  # where two lengths are stated, one that agrees is enough
        yield faults[0]


def _maximum(rope_type: str, original: int, factor: float, maximum: int | None) -> Finding | None:
    """Whether the maximum is what this original length and factor make."""
    if maximum is None or not (factor > 1 and factor * original < math.inf):
        return None
    reached = round(factor * original)
    if maximum < original:
        rule, remedy = f"must be at least the original length ({original}), got {maximum}", f"write {reached}"
    elif maximum == original:
        rule = (
            f"must be factor {factor:g} times the original length ({original}), got the original length itself: "
            f"generation and evaluation stop there, unless the original length was left out and this was filled in"
        )
        remedy = f"write {reached}, or {ORIGINAL} {maximum / factor:g} if the factor is in the maximum already"
    elif rope_type != "llama3" and maximum > reached + 1 and maximum >= 1.01 * reached:
        # Llama 3.1 is published with factor 8, 8,192 tokens before and 131,072 after
        rule = (
            f"must be factor {factor:g} times the original length ({original}), which is {reached}, got {maximum}: it "
            f"was multiplied twice, or the original length is wrong"
        )
        remedy = f"write {reached}, or the {ORIGINAL} that the factor started from"
    elif rope_type != "llama3" and maximum < 0.99 * reached - 1:
        rule = f"must be factor {factor:g} times the original length ({original}), which is {reached}, got {maximum}"
        remedy = f"write {reached}, or the factor that was meant ({maximum / original:g})"
    else:
        return None
    check = "double-scaling" if maximum > reached else "maximum"
    return Finding(check=check, where="max_position_embeddings", rule=rule, remedy=remedy)


def _computed(config: PreTrainedConfig, where: str) -> Iterator[Finding]:
    """Whether frequencies come out of the config."""
    try:
        require_supported(config)
        for part in parts_of(config):
            # whatever the original length: not every type needs one to compute from
            part_geometry(part, original_length=_whole(config.max_position_embeddings), existing="replace")
            if rope_type_of(part.config) != LATE_TYPE:
                todays_spectrum(part)
    except RopescaleError as error:
        rule, _, remedy = str(error).rpartition("; ")
        yield Finding(check="rope-parameters", where=where, rule=rule, remedy=remedy)


def _unturned(config: PreTrainedConfig, text: dict[str, Any]) -> Iterator[Finding]:
    """A rotation that is stated for layers that do not rotate."""
    reason = unrotated(config)
    if not reason:
        return
    scaled = {rope_type_of(part.config) for part in parts_of(config)} - {"default"}
    if not scaled and "rope_theta" not in text:
        return  # the default that Transformers writes into every config
    yield Finding(
        check="no-rotation",
        where="rope_theta" if not scaled else "rope_parameters",
        rule=f"must act on layers that rotate, got {reason}: no layer has positions from a rotation, and nothing of "
        f"it is used",
        remedy="remove it, and for a longer context write max_position_embeddings alone",
    )


def _as_built(config: PreTrainedConfig, where: str) -> Iterator[Finding]:
    """Whether Transformers builds the rotation that the config states."""
    for part in parts_of(config):
        if rope_type_of(part.config) == LATE_TYPE:
            continue
        try:
            built = built_rotation(part)
        except RopescaleError as error:
            rule, _, remedy = str(error).rpartition("; ")
            yield Finding(check="rope-parameters", where=where, rule=rule, remedy=remedy)
            continue
        if built is None:
            continue
        inv_freq, attention_factor = todays_spectrum(part)
        fault = _unlike(built[0], inv_freq)
        if not fault and abs(built[1] - attention_factor) > EXACT * attention_factor:
            fault = f"attention factor {built[1]:g} in the place of {attention_factor:g}"
        if fault:
            yield Finding(
                check="rope-parameters",
                where=f"{where}: {part.label or 'rope_parameters'}",
                rule=f"must state the rotation that Transformers builds for {config.model_type}, got {fault}",
                remedy="remove the entries that this family does not read",
            )


def _recorded(config: PreTrainedConfig, where: str) -> Iterator[Finding]:
    """Whether the record and the rest of the config say one thing."""
    if hasattr(config, EXPORT_FIELD):  # the same rotation, in the words of one engine
        return
    place = f"{where}: {RECORD_FIELD}"
    try:
        record = saved_record(config)
        if record is None:
            if any(rope_type_of(part.config) == LATE_TYPE for part in parts_of(config)):
                yield Finding(
                    check="record",
                    where=place,
                    rule=f"must say what was done where rope_type is {LATE_TYPE!r}, got none",
                    remedy="restore the config.json that ropescale saved",
                )
            return
        fresh, extension = extended_again(config, record)
    except RopescaleError as error:
        rule, _, remedy = str(error).rpartition("; ")
        yield Finding(check="record", where=place, rule=rule, remedy=remedy)
        return
    window = rotating_window(fresh, record.original_length)
    if record.layers == "global" and window and record.method != UNSCALED:
        yield Finding(
            check="no-effect",
            where=place,
            rule=f"must act on layers that read the whole context, got {record.method} in a {config.model_type}, "
            f"where only layers of a window of {window} tokens rotate: an earlier version did not refuse it",
            remedy=f"load it with ropescale.load, unpatch it, and patch with method {UNSCALED!r}, which raises the "
            f"limit alone",
        )
    for name, value in extension.fields.items():
        if getattr(config, name, None) != value:
            yield Finding(
                check="double-scaling",
                where=f"{where}: {name}",
                rule=f"must be what the ropescale record ({record.method_instance()}) gives, "
                f"{shortened(value)}, got {shortened(getattr(config, name, None))}: it was edited or scaled again",
                remedy=f"write it back, or remove the entry {RECORD_FIELD!r} to keep the config as it is",
            )


def _limits(folder: Path, text: dict[str, Any], maximum: int) -> Iterator[Finding]:
    """Files beside the config that stop a text before its maximum."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    before = text.get(ORIGINAL) or (rope.get(ORIGINAL) if isinstance(rope, dict) else None)
    if isinstance(text.get(RECORD_FIELD), dict):
        before = text[RECORD_FIELD].get("original_length")
    for name in LIMITS:
        settings = read_json(folder / name)
        for limit, value in outdated(name, settings, before if isinstance(before, int) else maximum, maximum).items():
            yield Finding(
                check="short-limit",
                where=f"{name}: {limit}",
                rule=f"must be at least max_position_embeddings ({maximum}), got {value}",
                remedy=f"write {maximum}",
            )


def _weights(folder: Path, config: PreTrainedConfig | None) -> Iterator[Finding]:
    """Shards that are missing, and frequencies that were saved among the weights."""
    index = read_index(folder / SAFE_WEIGHTS_INDEX_NAME) if (folder / SAFE_WEIGHTS_INDEX_NAME).exists() else {}
    missing = sorted({name for name in index.values() if not (folder / name).is_file()})
    for name in missing:
        yield Finding(
            check="missing-weights",
            where=name,
            rule=f"must be there, since {SAFE_WEIGHTS_INDEX_NAME} names it, got no such file",
            remedy="copy or download the checkpoint again",
        )
    if missing:
        return
    expected = None
    if config is not None and not parts_of(config)[0].label and rope_type_of(config) != LATE_TYPE:
        expected = todays_spectrum(parts_of(config)[0])[0]
    for file in weight_files(str(folder), {}):
        try:
            yield from _saved_frequencies(Path(file), expected)
        except SafetensorError as error:
            yield Finding(
                check="missing-weights",
                where=Path(file).name,
                rule=f"must be a whole safetensors file, got {error}",
                remedy="copy or download the checkpoint again",
            )


def _saved_frequencies(file: Path, expected: Tensor | None) -> Iterator[Finding]:
    """Frequencies in one file of weights: engines that read them rotate by these and not by the config."""
    with safe_open(file, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # not a dict
            if not is_table(name) or not name.endswith("inv_freq"):
                continue
            live = weights.get_tensor(name)
            remedy = "remove the tensor: Transformers computes it from the config"
            if live.dtype != torch.float32:
                yield Finding(
                    check="low-precision",
                    where=f"{file.name}: {name}",
                    rule=f"must be float32 or not there, got {live.dtype}: phases drift over thousands of tokens",
                    remedy=remedy,
                )
            elif expected is not None and (fault := _unlike(live, expected)):
                yield Finding(
                    check="saved-frequencies",
                    where=f"{file.name}: {name}",
                    rule=f"must be the frequencies of the config or not there, got {fault}",
                    remedy=remedy,
                )


def _live(model: nn.Module, config: Any, *, comparable: bool) -> Iterator[Finding]:
    """What the rotary module of a loaded model holds, beside its config; `comparable`: where that can be computed."""
    parts = parts_of(config)
    reload = "load the model again with from_pretrained, or ropescale.load if it was saved patched"
    try:
        rotary = find_rotaries(model, parts)[0]
    except RopescaleError as error:
        rule, _, remedy = str(error).rpartition("; ")
        yield Finding(check="uninitialised", where="model", rule=rule, remedy=remedy)
        return
    for part in parts:
        if rope_type_of(part.config) in (LATE_TYPE, "dynamic", "longrope") and not _fixed(part.config):
            continue  # holds nothing, or what the last call needed
        name = f"{part.prefix}inv_freq"
        where = f"{rotary.name}.{name}"
        live: Tensor = getattr(rotary.module, name)
        if live.dtype != torch.float32:
            yield Finding(
                check="low-precision",
                where=where,
                rule=f"must be float32, got {live.dtype}: a cast after loading rounded it, and phases drift",
                remedy="load with from_pretrained(dtype=...) in the place of the cast, which keeps it float32",
            )
        if not comparable:
            continue
        spectrum, attention_factor = todays_spectrum(part)
        spectrum = spectrum.to(live.device)
        if live.dtype == torch.float32 and (fault := _unlike(live, spectrum)):
            rounded = live.shape == spectrum.shape and bool(((live - spectrum).abs() <= HALF * spectrum).all())
            uninitialised = not bool(torch.isfinite(live).all()) or not bool(live.any())
            yield Finding(
                check="low-precision" if rounded else "uninitialised" if uninitialised else "config-edited",
                where=where,
                rule=f"must hold the frequencies of the config, got {fault}"
                + (": it was rounded to half precision and back" if rounded else ""),
                remedy=reload,
            )
        scaling = getattr(rotary.module, f"{part.prefix}attention_scaling")
        if abs(float(scaling) - attention_factor) > EXACT * attention_factor:
            yield Finding(
                check="config-edited",
                where=f"{rotary.name}.{part.prefix}attention_scaling",
                rule=f"must be the attention factor of the config ({attention_factor:g}), got {float(scaling):g}",
                remedy=reload,
            )


def _fixed(config: PreTrainedConfig) -> bool:
    """Whether a longrope config states one list, so that its module holds the same at every length."""
    rope = config.rope_parameters
    return rope_type_of(config) == "longrope" and rope.get("short_factor") == rope.get("long_factor")


def _unlike(live: Tensor, expected: Tensor) -> str:
    """How frequencies differ from expected ones, in words; empty where they do not."""
    if live.shape != expected.shape:
        return f"{tuple(live.shape)} in the place of {len(expected)} pairs"
    off = ~((live - expected).abs() <= EXACT * expected + 1e-30)
    if not bool(off.any()):
        return ""
    pair = int(off.int().argmax())
    return f"{live[pair].item():g} for pair {pair} in the place of {expected[pair].item():g}"
