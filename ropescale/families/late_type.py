"""The type that a config states where Transformers has none that does the same, and how Transformers meets it."""

import functools
from typing import Any

from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropescale.errors import CheckpointError
from ropescale.families.catalogue import CATALOGUE
from ropescale.records import saved_record

LATE_TYPE = "ropescale"


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
    validators[:] = [validate_rope if validator is own else validator for validator in validators]


for _row in CATALOGUE.values():
    if (_row.longrope_only or _row.recomputing) and _row.model_type in CONFIG_MAPPING:
        admit_late(CONFIG_MAPPING[_row.model_type])
