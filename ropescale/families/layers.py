"""What the layers of a model do with positions, by its config: which rotate, and how far each sees."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from ropescale.checks import is_whole
from ropescale.errors import InvalidArgumentError, UnsupportedModelError
from ropescale.families.catalogue import family_of
from ropescale.families.parts import GLOBAL, UNSCALED, parts_of
from ropescale.records import Record
from ropescale.temperature import Temperature

# The entry that limits what layers of a type see; layers of RECURRENT types see no context by attention
WINDOWS = {
    "chunked_attention": "attention_chunk_size",
    "hybrid_sliding": "sliding_window",
    "sliding_attention": "sliding_window",
}
RECURRENT = frozenset({"conv", "linear_attention", "mamba"})


def unrotated(config: PreTrainedConfig) -> str:
    """The entry by which no layer of a config rotates, as it stands there; empty where layers rotate."""
    if getattr(config, "alibi", False):
        return "alibi true"
    kind = getattr(config, "position_embedding_type", None)
    if family_of(config.model_type).names_positions and kind not in (None, "rope"):
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
    row, all_layers = family_of(config.model_type), []
    for index, kind in enumerate(types):
        if kind in RECURRENT:
            continue
        entry = getattr(config, WINDOWS[kind], None) if kind in WINDOWS else None
        window = entry if is_whole(entry, 1) else 0
        rotates = bool(rotating[index]) and not unrotated(config)
        rotates = rotates and (kind == "sliding_attention" or row.far_layers_rotate(config, index))
        all_layers.append(Layer(window, rotates))
    return all_layers


def kept_layers(config: PreTrainedConfig, layers: str) -> frozenset[int]:
    """The numbers of the layers that keep their rotation, though one module serves them and those that are rescaled.

    Layers of a window, where "full" asks for the others alone; none where the config states rotations by layer type.

    Raises:
        InvalidArgumentError: "full", and every layer looks at a window.
    """
    if layers != "full" or parts_of(config)[0].label:
        return frozenset()
    all_layers = layers_of(config)
    if all_layers and all(layer.window for layer in all_layers):
        raise InvalidArgumentError(
            f"layers: must be 'global' or 'all' for a {config.model_type} of which every layer looks at a window of "
            f"tokens, got {layers!r}, which leaves nothing to rescale; leave it out"
        )
    types = getattr(config, "layer_types", None) or ()
    return frozenset(number for number, kind in enumerate(types) if kind in WINDOWS and getattr(config, WINDOWS[kind]))


def rotating_window(config: PreTrainedConfig, length: int) -> int:
    """The window in tokens of the layers that rotate, where no layer that sees farther than `length` does; else 0."""
    all_layers = layers_of(config)
    far = [layer for layer in all_layers if layer.reads_beyond(length)]
    if not far or any(layer.rotates for layer in far):
        return 0
    return max((layer.window for layer in all_layers if layer.rotates), default=0)


def layers_meant(saved: Record, config: PreTrainedConfig) -> str:
    """The layers that a record names, as this version takes them.

    Where one rotation serves all layers, "global" was "all", also in families where only windows rotate: earlier
    versions did not refuse it there.
    """
    return "all" if saved.layers == "global" and not parts_of(config)[0].label else saved.layers


def require_effect(
    config: PreTrainedConfig, method: str, length: int, layers: str, temperature: Temperature | None = None
) -> str:
    """What a rescaled rotation changes that was not meant, in words; empty where there is nothing to say.

    A layer of a window within the original length sees no distance that
    it was not pretrained for, so rescaling it helps nothing.

    Raises:
        UnsupportedModelError: no layer rotates.
        InvalidArgumentError: none of the layers that read the whole context rotates, and not all layers were meant.
    """
    scales = method != UNSCALED
    all_layers = layers_of(config)
    reason = unrotated(config)
    if not reason and all_layers and not any(layer.rotates for layer in all_layers):
        reason = f"layer_types {', '.join(sorted(set(config.layer_types)))}, of which none rotates in this family"
    row = family_of(config.model_type)
    anyway = row.built_anyway or row.windows_alone
    if reason and (scales or not anyway):
        remedy = (
            f"scale nothing and raise the limit alone: method {UNSCALED!r}"
            if anyway
            else "scale nothing and write a larger max_position_embeddings into the config, which is all it needs"
        )
        raise UnsupportedModelError(
            f"{config.model_type}: layers must rotate for {method} to act, got {reason}; {remedy}"
        )
    window = rotating_window(config, length)
    if temperature is not None and window:
        return _of_temperature(config, method if scales else "", temperature, window, layers)
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
    far = [layer for layer in all_layers if layer.reads_beyond(length)]
    local = [layer for layer in all_layers if layer.rotates and not layer.reads_beyond(length)]
    if any(layer.rotates for layer in far):
        mixed = layers != "full" and len({layer.window > 0 for layer in all_layers if layer.rotates}) > 1
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
    _require_windows_meant(config, method, window, layers)
    return (
        f"{config.model_type}: only layers of a window of {window} tokens rotate, so {method} rescales those, and the "
        f"layers that read the whole context stay as they are"
    )


def _require_windows_meant(config: PreTrainedConfig, method: str, window: int, layers: str) -> None:
    """Refuse to rescale layers of a window alone unless all were meant."""
    if layers != "all":
        raise InvalidArgumentError(
            f"layers: must be 'all' to rescale a {config.model_type} by {method}, whose layers that read the whole "
            f"context do not rotate, got {layers!r}, which leaves those of a window of {window} tokens, where no "
            f'distance grows; scale nothing and raise the limit alone: method "{UNSCALED}"'
        )


def _of_temperature(config: PreTrainedConfig, method: str, temperature: Temperature, window: int, layers: str) -> str:
    """Where a temperature acts in a model of which only layers of a window rotate, in words.

    `method` is empty where it rescales nothing.

    Raises:
        InvalidArgumentError: not all layers were meant.
    """
    if method:
        _require_windows_meant(config, method, window, layers)
    entry, *by = family_of(config.model_type).own_temperature or ("",)
    own = entry and getattr(config, entry, False)
    those = f"{entry} ({', '.join(f'{name} {getattr(config, name):g}' for name in by)})" if own else ""
    if layers != "all":
        remedy = f"leave it out: those that read the whole context have one of their own, {those}" if own else ""
        raise InvalidArgumentError(
            f"temperature: must go with layers='all' in a {config.model_type}, where it multiplies queries of the "
            f"layers that rotate, which see {window} tokens at most, got '{temperature}' and layers {layers!r}; "
            f"{remedy or 'leave it out, for in those no attention is divided among more keys'}"
        )
    what = f"{method} rescales those, {temperature}" if method else str(temperature)
    rest = f"go on with {those}" if own else "stay as they are"
    return (
        f"{config.model_type}: only layers of a window of {window} tokens rotate, so {what} multiplies their queries, "
        f"and the layers that read the whole context {rest}"
    )
