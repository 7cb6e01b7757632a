"""What an engine that reads config.json is told, and the rules that such engines share."""

import copy
import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.export.canonical import Canonical, Rotation, is_base
from ropescale.families.catalogue import family_of

# Types whose frequencies do not go by max_position_embeddings, of which engines make tables that are so long
GOING_ON = ("default", "llama3")


@dataclass(frozen=True, kw_only=True)
class Stated:
    """The entries of config.json that say how positions rotate, and what the engine makes of them."""

    fields: dict[str, Any]  # by their names in config.json
    form: str  # in words
    serves: int  # tokens, without further flags
    of_whole: tuple[str, ...] = ()  # entries that it reads among the text decoder's where they stand beside those
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
        **lengths(config, canonical.main.target_length),
    }
    said = config.to_dict()  # Falcon's head_dim is no entry, and Gemma 4 has another in some layers
    for name in ("original_max_position_embeddings", "head_dim"):
        if name in said:
            fields[name] = said[name]
    if "original_max_position_embeddings" in fields:
        fields["original_max_position_embeddings"] = canonical.main.original_length
    return fields


def lengths(config: PreTrainedConfig, length: int) -> dict[str, int]:
    """The entries that say how far a config reaches: some classes keep it by a name of their own, as DBRX does."""
    own = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return dict.fromkeys(("max_position_embeddings", own), length)


def reaching(stated: Stated, config: PreTrainedConfig, canonical: Canonical, length: int) -> Stated:
    """The same for a model that is read to so many tokens, which may be more than it is made for.

    Where frequencies do not go by the length that a config states, positions beyond it go on as those before.

    Raises:
        ExportError: an engine has no positions beyond that length.
    """
    if length <= canonical.main.target_length:
        return stated
    ending = [rotation.rope_type for rotation in canonical.rotations if rotation.rope_type not in GOING_ON]
    if ending:
        raise ExportError(
            f"{config.model_type}: lengths must be at most {canonical.main.target_length:,} tokens with rope_type "
            f"{ending[0]}, beyond which engines have no positions, got {length:,}; ask for shorter ones"
        )
    longer = lengths(config, length)
    return dataclasses.replace(stated, fields=stated.fields | longer, serves=length)


def by_mscale(rotation: Rotation) -> dict[str, Any]:
    """The parameters of a yarn for a class that reads mscale and mscale_all_dim, and not attention_factor.

    There the attention factor is m(mscale) / m(mscale_all_dim), with m(x) = 0.1 x ln(factor) + 1 and an mscale of 1
    and an mscale_all_dim of 0 where they are not stated; latent attention multiplies its softmax by
    m(mscale_all_dim)^2. Transformers reads the same from it.

    Raises:
        ExportError: an attention factor beside a factor of 1, by which no mscale counts.
    """
    rope = dict(rotation.parameters)
    kept = rope.pop("mscale_all_dim", None) or 0.0
    for name in ("attention_factor", "mscale"):
        rope.pop(name, None)
    all_dim = kept if hasattr(rotation.part.config, "kv_lora_rank") else 0.0
    scale, step = rotation.spectrum.attention_factor, 0.1 * math.log(rope["factor"])
    if not all_dim and abs(scale - (1 + step)) <= 1e-9:
        return rope
    if not step:
        raise ExportError(
            f"{rotation.part.config.model_type}: yarn must have a factor above 1 to be told an attention factor by "
            f"mscale, got {scale:g} with factor 1; export to transformers"
        )
    rope["mscale"] = (scale * (1 + all_dim * step) - 1) / step
    if all_dim:
        rope["mscale_all_dim"] = all_dim
    if not (all_dim and rope["mscale"]):  # Transformers reads mscale only where neither is zero
        rope["attention_factor"] = scale
    return rope


def states_original_length_on_top(config: PreTrainedConfig) -> bool:
    """Whether the original length is an entry of its own, as in Phi-3."""
    return family_of(config.model_type).longrope_only or hasattr(config, "original_max_position_embeddings")


def as_argument(values: dict[str, Any]) -> str:
    """JSON for a command line, within single quotes."""
    return f"'{json.dumps(values)}'"
