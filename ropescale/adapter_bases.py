"""Whether a base is the one that an adapter was trained on: its patch, its config and its weights."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ropescale.adapter_files import CONFIG_FILE, RECORD_FILE, file_of
from ropescale.checkpoint import added_parameters
from ropescale.checkpoints import resolve
from ropescale.contents import weight_files
from ropescale.digest import differing, digest_of, digest_of_files
from ropescale.errors import AlreadyPatchedError, CheckpointError, InvalidArgumentError, shortened
from ropescale.families.parts import text_of
from ropescale.files import read_json
from ropescale.records import RECORD_FIELD, Record
from ropescale.wrappers import bare


def require_same_patch(live: Record, saved: Record, path: str | Path) -> None:
    """Refuse a base that is patched in another way than the one that an adapter was trained on.

    Raises:
        AlreadyPatchedError: another method, or other knobs, lengths or layers.
    """

    def facts(record: Record) -> dict[str, Any]:
        kept = dataclasses.replace(record, versions={}, original_length_source="", generation={}, proof={}, base={})
        plain = kept.to_dict()
        plain["before"].pop(RECORD_FIELD, None)
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]

    if facts(live) != facts(saved):
        raise AlreadyPatchedError(
            f"base: must be unpatched, or patched as the adapter {str(path)!r} was trained "
            f"({saved.method_instance()}, {saved.target_length} tokens), got one patched with "
            f"{live.method_instance()} to {live.target_length} tokens; call ropescale.unpatch(base) first"
        )


def require_same_weights(base: PreTrainedModel, saved: Record, path: str | Path) -> None:
    """Refuse a base with other weights than the adapter was trained on, as far as the record has a digest of them.

    A base in another type or sharded anew is the same; of one that is quantised, where methods move weights from one
    tensor to another, a difference is said in a warning.

    Raises:
        InvalidArgumentError: other weights.
    """
    if not saved.base:
        return
    other, compared = differing(_decoder(base), saved.base)
    if not other and compared:
        return
    if getattr(base, "is_quantized", False) or not compared:
        warnings.warn(
            f"base: whether its weights are those that the adapter {str(path)!r} was trained on cannot be seen: "
            f"{len(saved.base) - compared + len(other)} of {len(saved.base)} tensors that the record describes are in "
            f"another form; make sure that it is the base that {CONFIG_FILE} names",
            stacklevel=3,
        )
        return
    raise InvalidArgumentError(
        f"base: weights must be those that the adapter {str(path)!r} was trained on, got other values in "
        f"{len(other)} of {compared} tensors compared, {other[0]!r} first; give the base that {CONFIG_FILE} names, or "
        f"if others are meant take 'base' out of its {RECORD_FILE}"
    )


def require_named_base(base: PreTrainedModel, path: str | Path, finding: dict[str, Any]) -> None:
    """Refuse a base with other weights than the one that an adapter's config names, where that one is on this disk.

    Raises:
        InvalidArgumentError: other weights.
    """
    file = file_of(path, CONFIG_FILE, finding)
    named = read_json(Path(file)).get("base_model_name_or_path") if file else None
    if not isinstance(named, str) or not named or getattr(base, "is_quantized", False):
        return
    place = resolve(named)
    if place == base.name_or_path:
        return
    try:
        digest = digest_of_files(weight_files(place, {"local_files_only": True}))
    except (OSError, SafetensorError, CheckpointError):  # nothing there, or nothing that could be compared
        return
    other, compared = differing(base, digest)
    if other:
        raise InvalidArgumentError(
            f"base: weights must be those that the adapter {str(path)!r} was trained on, got other values than in "
            f"{named!r} in {len(other)} of {compared} tensors compared, {other[0]!r} first; give the base that "
            f"{CONFIG_FILE} names"
        )


def require_same_base(base: PreTrainedModel, saved: Record, path: str | Path) -> None:
    """Refuse an unpatched base whose rotary facts are not those of the one that an adapter was trained on.

    Raises:
        InvalidArgumentError: other facts.
    """
    config = getattr(bare(base), "config", None)
    if isinstance(config, PreTrainedConfig):
        config = text_of(config)
    for name in (*saved.before, *saved.added):
        if name == RECORD_FIELD:
            continue
        value, trained = getattr(config, name, None), saved.before.get(name)
        if json.dumps(value, sort_keys=True, default=str) != json.dumps(trained, sort_keys=True, default=str):
            raise InvalidArgumentError(
                f"base: config.{name} must be what the adapter {str(path)!r} was trained on ({shortened(trained)}), "
                f"got {shortened(value)}; give the base that {CONFIG_FILE} names, unscaled or loaded with "
                f"ropescale.load"
            )


def saved_by_peft(model: Any) -> set[int]:
    """Where the values lie that PEFT saves: it gives the parameters themselves, not copies."""
    from peft import get_peft_model_state_dict

    return {
        tensor.data_ptr()
        for adapter in model.peft_config
        for tensor in get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False).values()
    }


def digest_of_base(model: nn.Module) -> dict[str, list[Any]]:
    """Of the weights that the adapter was trained on, without those that were trained."""
    base, kept = bare(model), saved_by_peft(model)
    added = {id(parameter) for parameter in added_parameters(base).values()}
    trained = {
        id(parameter) for parameter in base.parameters() if parameter.requires_grad or parameter.data_ptr() in kept
    }
    return digest_of(_decoder(base), without=trained | added)


def _decoder(model: nn.Module) -> nn.Module:
    """A model without its head, which may be the adapter's own."""
    base: Any = bare(model)
    decoder: nn.Module = base.base_model
    return decoder
