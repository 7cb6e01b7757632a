"""What an engine that reads config.json is told, and the rules that such engines share."""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ropescale.export.rotation import Canonical, Rotation, is_base
from ropescale.families import LONGROPE_ONLY


@dataclass(frozen=True, kw_only=True)
class Stated:
    """The entries of config.json that say how positions rotate, and what the engine makes of them."""

    fields: dict[str, Any]  # by their names in config.json
    form: str  # in words
    serves: int  # tokens, without further flags
    flags: tuple[str, ...] = ()  # of the engine's command, which it needs to serve the target length
    overrides: dict[str, Any] = field(default_factory=dict)  # of an unmodified checkpoint


def native_form(rotation: Rotation) -> str:
    """How Transformers calls a rotation, in words."""
    if rotation.rope_type == "default":
        return "theta alone" if is_base(rotation) else "its native type default"
    if rotation.rope_type == "longrope":
        return "one divisor per pair (longrope with equal lists)"
    return f"its native type {rotation.rope_type}"


def in_whole(config: PreTrainedConfig, canonical: Canonical, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """The `rope_parameters` of the whole model, where those of its parts are these."""
    whole: Any = copy.deepcopy(config.rope_parameters)
    for rotation, stated in zip(canonical.rotations, parameters, strict=True):
        whole = rotation.part.in_whole(stated, whole)
    assert isinstance(whole, dict)
    return whole


def fields_of(config: PreTrainedConfig, canonical: Canonical, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """The entries of config.json for these rotations, with the target length for the maximum."""
    fields: dict[str, Any] = {
        "rope_parameters": in_whole(config, canonical, parameters),
        "max_position_embeddings": canonical.main.target_length,
    }
    said = config.to_dict()  # Falcon's head_dim is no entry, and Gemma 4 has another in some layers
    for name in ("original_max_position_embeddings", "head_dim"):
        if name in said:
            fields[name] = said[name]
    if "original_max_position_embeddings" in fields:
        fields["original_max_position_embeddings"] = canonical.main.original_length
    return fields


def states_original_length_on_top(config: PreTrainedConfig) -> bool:
    """Whether the original length is an entry of its own, as in Phi-3."""
    return config.model_type in LONGROPE_ONLY or hasattr(config, "original_max_position_embeddings")


def as_argument(values: dict[str, Any]) -> str:
    """JSON for a command line, within single quotes."""
    return f"'{json.dumps(values)}'"
