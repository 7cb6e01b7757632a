"""The rotation that Transformers builds from a config, without the model around it and without weights."""

import copy
import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ropescale.errors import UnsupportedModelError, first_line
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.parts import Part, stating

EXACT = 1e-5  # relative difference of frequencies that float32 arithmetic can make


def rotary_class(config: PreTrainedConfig) -> Any:
    """The class of the rotary module of a config's decoder; None where no single class takes this config."""
    name = type(config).__module__.replace(".configuration_", ".modeling_")
    if type(config) in AutoModelForCausalLM._model_mapping:  # a config may go with another family's model
        name = AutoModelForCausalLM._model_mapping[type(config)].__module__
    module = importlib.import_module(name)
    classes = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == name
        and kind.__name__.endswith("RotaryEmbedding")
        and "config" in inspect.signature(kind.__init__).parameters
    ]
    own = [
        kind for kind in classes if inspect.signature(kind.__init__).parameters["config"].annotation is type(config)
    ]
    classes = own or classes
    return classes[0] if len(classes) == 1 else None


def built_rotation(part: Part) -> tuple[Tensor, float] | None:
    """The inverse frequencies [pairs] and the attention factor in the module that Transformers builds for this part.

    None where its class cannot be told, or holds them otherwise.

    Raises:
        UnsupportedModelError: Transformers builds none from this config.
    """
    make = rotary_class(part.whole)
    if make is None:
        return None
    # of a copy, because building writes what is missing into the config
    config = copy.deepcopy(part.whole if part.label else part.config)
    for rope in config.rope_parameters.values() if part.label else ():
        if isinstance(rope, dict) and rope.get("rope_type") == LATE_TYPE:  # which no module rotates by
            rope["rope_type"] = "default"
    try:
        with torch.device("cpu"):
            rotary = make(config=config)
    except Exception as error:  # what its code runs into with values that it does not check
        raise UnsupportedModelError(
            f"{config.model_type}: rope_parameters must be ones that Transformers builds a rotation from, got "
            f"{type(error).__name__}: {first_line(error)}; repair the config"
        ) from error
    inv_freq = getattr(rotary, f"{part.prefix}inv_freq", None)
    if not isinstance(inv_freq, Tensor):
        return None
    return inv_freq, float(getattr(rotary, f"{part.prefix}attention_scaling", 1.0))


def rotated_pairs(part: Part) -> int | None:
    """How many pairs of a head the layers of this part turn, whatever the scaling; None where it cannot be told.

    Some families turn whole heads and do not read `partial_rotary_factor`, which the functions of Transformers for
    scaled types do read.

    Raises:
        UnsupportedModelError: Transformers builds no rotation from this config.
    """
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if "partial_rotary_factor" in part.config.rope_parameters:
        rope["partial_rotary_factor"] = part.config.rope_parameters["partial_rotary_factor"]
    others = {} if not part.label else part.whole.rope_parameters
    plain = stating(part.whole, part.in_whole(rope, others))
    built = built_rotation(Part(part.label, stating(part.config, rope), plain))
    return None if built is None else len(built[0])


def unlike(live: Tensor, expected: Tensor) -> str:
    """How frequencies differ from expected ones, in words; empty where they do not."""
    if live.shape != expected.shape:
        return f"{tuple(live.shape)} in the place of {len(expected)} pairs"
    off = ~((live - expected).abs() <= EXACT * expected + 1e-30)
    if not bool(off.any()):
        return ""
    pair = int(off.int().argmax())
    return f"{live[pair].item():g} for pair {pair} in the place of {expected[pair].item():g}"
