"""What is wrong in a config by its own words: its maximum, where its rope parameters stand, and each block of them."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from ropescale.checks import is_whole
from ropescale.doctor.block import READ, of_block
from ropescale.doctor.effect import stating_types
from ropescale.doctor.finding import Finding
from ropescale.doctor.lengths import whole
from ropescale.errors import shortened
from ropescale.families.catalogue import family_of
from ropescale.families.parts import parts_of
from ropescale.families.today import rope_type_of
from ropescale.records import EXPORT_FIELD


def text_in(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a raw config that is about text."""
    inner = raw.get("text_config")
    return inner if isinstance(inner, dict) and "rope_parameters" not in raw else raw


def stated(text: dict[str, Any], config: PreTrainedConfig | None) -> Iterator[Finding]:
    """What is wrong in the config by its own words; `config` is what Transformers makes of it, if it reads it."""
    maximum = text.get("max_position_embeddings")
    counted = is_whole(maximum, 1)
    if "max_position_embeddings" in text and not counted:
        yield Finding(
            check="maximum",
            where="max_position_embeddings",
            rule=f"must be a whole number of tokens, got {shortened(maximum)}",
            remedy=f"write {whole(maximum)}" if whole(maximum) else "write the length that the model reads",
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
            yield from of_block(where, block, rope_type, about, nested=nested, legacy=not parameters or bool(both))


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
    for part in parts_of(config) if config is not None and stating_types(config) else ():
        if label in ("", part.label) and rope_type_of(part.config) in READ:
            return rope_type_of(part.config)
    if family_of(str(text.get("model_type"))).longrope_only and stated == "yarn":
        return "longrope"
    return stated
