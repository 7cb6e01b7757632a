"""What an engine's own class of a family leaves out of a rotation.

Many classes take theta alone from a config, or theta from an entry of their own, or take every type for yarn: what
they do not read, they leave out without a word. So whatever is written for an engine is held against its `reads`; a
family that is not named there reads all that the engine does, or is run through the class of Transformers.
"""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.export.canonical import Canonical, Rotation

if TYPE_CHECKING:
    from ropescale.export.engines.base import Engine

RAISE = "raise the limit alone with method 'unscaled'"
NOTHING: frozenset[str] = frozenset()  # rotates by entries of its own, which say what pretraining left
THETA = frozenset({"default"})
LINEAR = frozenset({"default", "linear"})
YARN = frozenset({"default", "yarn"})
YARN_ALONE = frozenset({"yarn"})
WITHOUT_DIVISORS = frozenset({"default", "linear", "llama3", "yarn"})  # which are for halves of a head, not neighbours
LONGROPE = frozenset({"default", "longrope"})

# Latent attention of DeepSeek's kind, for which servers rename every type but the default one to a yarn that
# reads mscale and mscale_all_dim, and neither attention_factor nor truncate
LATENT = ("axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash")
# Families whose class in servers rotates neighbours (is_neox_style=False)
NEIGHBOURS = ("axk2", "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "hy_v4")


def require_read(engine: "Engine", config: PreTrainedConfig, canonical: Canonical, parameters: Any) -> None:
    """Refuse what the engine's class of this family, or the config class that every engine reads it by, leaves out.

    Args:
        engine: what it is written for.
        config: of the extended model.
        canonical: what was to be told.
        parameters: the `rope_parameters` that were written for it.

    Raises:
        ExportError: a rotation that would not be the one that was meant.
    """
    family = config.model_type
    for rotation in canonical.rotations:
        label = rotation.part.label
        rope = parameters[label] if label else parameters
        rope_type, held = rope["rope_type"], engine.reads_of(family, rope)
        if rope_type == "longrope" and getattr(rotation.part.whole, "is_heterogeneous", False):
            nearest = "nearest that it holds exactly: by_parts or llama3 or ntk or yarn"
            raise ExportError(
                f"{family}: a rotation must have a type of its own to be exported where heads differ by layer, since "
                f"no config states divisors for each pair there, got {stated_as(rotation)}, which {engine.title} does "
                f"not read; {RAISE if rotation.rope_type == 'proportional' else nearest}, or export to transformers"
            )
        if held is None or (rope_type in held and not engine.leaves_out(family, rotation, rope)):
            continue
        if not held and as_pretrained(rotation, canonical):
            continue
        raise ExportError(
            f"{family}: {engine.title} must read a rotation to be told it, got {stated_as(rotation)} for a class "
            f"there {_reading(held)}; {_nearest(held)}, or export to transformers"
        )


def stated_as(rotation: Rotation) -> str:
    """A rotation in words."""
    factor = rotation.parameters.get("factor")
    return f"rope_type {rotation.rope_type!r}" + (f" with factor {factor:g}" if factor else "")


def as_pretrained(rotation: Rotation, canonical: Canonical) -> bool:
    """Whether nothing but the length was changed, and nothing is scaled."""
    label, record = rotation.part.label, canonical.record
    if rotation.rope_type != "default":
        return False
    if record is None:
        return True
    before: Any = record.before.get("rope_parameters", {})
    before = before.get(label, {}) if label else before
    return bool(before.get("rope_theta", rotation.theta) == rotation.theta)


def _reading(held: frozenset[str]) -> str:
    if not held:
        return "that rotates by entries of its own, as in pretraining"
    return "that reads theta alone" if held == THETA else f"that reads rope_type {' and '.join(sorted(held))} alone"


def _nearest(held: frozenset[str]) -> str:
    if not held:
        return RAISE
    exact = {
        "default": "ntk",
        "dynamic": "its own alpha",
        "linear": "linear",
        "llama3": "by_parts",
        "longrope": "ntk_fixed",
        "yarn": "yarn without its knobs",
    }
    return "nearest that it holds exactly: " + " or ".join(exact[rope_type] for rope_type in sorted(held))
