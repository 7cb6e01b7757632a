"""What is not patched, refused by name."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropescale.checks import as_float
from ropescale.errors import UnsupportedModelError, shortened
from ropescale.families.catalogue import PATCHED, family_of
from ropescale.families.parts import parts_of
from ropescale.families.today import rope_type_of


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
    if reason := family_of(config.model_type).refused:
        raise UnsupportedModelError(
            f"model type {config.model_type!r}: layers must rotate by frequencies that its config states once, got "
            f"{reason}; take a model of another family"
        )
    if config.model_type not in PATCHED:
        raise UnsupportedModelError(
            f"model type {config.model_type!r}: not a family that this version of ropescale patches, got "
            f"{type(config).__name__}; supported: {', '.join(sorted(PATCHED))}"
        )


def require_rotation(config: PreTrainedConfig) -> None:
    """Refuse `rope_parameters` of one part that state no rotation.

    Raises:
        UnsupportedModelError: no theta, an unknown type, or what a patch could not reach.
    """
    rope = getattr(config, "rope_parameters", None)
    stated = isinstance(rope, dict) and rope.get("rope_theta")
    if family_of(config.model_type).published_without and not stated:
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
