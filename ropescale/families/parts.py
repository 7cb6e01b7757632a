"""The parts of a model: its layers, by the rotation that they share."""

import copy
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ropescale.errors import InvalidArgumentError, UnsupportedModelError

UNSCALED = "unscaled"  # the method that raises the limit alone
LAYERS = ("all", "full", "global")
GLOBAL = (
    "compress",
    "full_attention",
    "hybrid",
    "indexed_attention",
)  # layer types that read the whole context, one in a family


def text_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the text decoder: the config itself, or that part of a vision-language model's."""
    own: PreTrainedConfig = config.get_text_config()
    return own


def place_of_text(config: PreTrainedConfig) -> str:
    """The entry of a config that is its text decoder's; empty where the config is that itself.

    Raises:
        UnsupportedModelError: it is no entry of its own.
    """
    text = text_of(config)
    if text is config:
        return ""
    for name in config.sub_configs:
        if getattr(config, name, None) is text:
            return str(name)
    raise UnsupportedModelError(
        f"model type {config.model_type!r}: the config of its text decoder must be an entry of its own, got that of a "
        f"{text.model_type} within another; take the model that it was built from"
    )


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
    return {name for name in entry if isinstance(name, str)} if isinstance(entry, (list, set, tuple)) else set()


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
