"""Saved models on disk: a patched one brought back patched."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ropescale.checkpoints import resolve
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError
from ropescale.families import saved_record, text_of
from ropescale.injection.late import NAME
from ropescale.patching import repatch
from ropescale.records import EXPORT_FIELD, RECORD_FIELD

# What from_pretrained needs to find the files, and so what reading the config needs too
FINDING = ("cache_dir", "code_revision", "local_files_only", "proxies", "revision", "subfolder", "token")

CONFIG = "config.json"
# Files beside the config that say where a text ends, and the entry that does
LIMITS = {"generation_config.json": "max_length", "tokenizer_config.json": "model_max_length"}


def load(path_or_name: str | Path, **from_pretrained: Any) -> PreTrainedModel:
    """A causal language model from disk or hub, patched again if it was saved patched.

    `tiny` is the embedded checkpoint, `smollm2` the real one, obtained on first use. A checkpoint without a record
    loads as it is. After loading, `unpatch` gives the model that it was before it was patched. Further keywords go
    to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        CheckpointError: no checkpoint there, a damaged record, or one that the rest of the config contradicts.
        InvalidArgumentError: neither a path nor a name.
        OSError: no weights beside the config (raised by Transformers).
    """
    if not isinstance(path_or_name, (str, Path)):
        raise InvalidArgumentError(
            f"load: path_or_name must be a path, a hub id or a short name, got {type(path_or_name).__name__}; "
            f"a model that is loaded already is patched with ropescale.patch(model)"
        )
    path = resolve(str(path_or_name))
    finding = {name: from_pretrained[name] for name in FINDING if name in from_pretrained}
    given = from_pretrained.pop("config", None)
    if given is None:
        given = read_config(path, trust_remote_code=from_pretrained.get("trust_remote_code"), **finding)
    config: PreTrainedConfig = copy.deepcopy(given)  # the caller's stays as it is
    text = text_of(config)
    record = saved_record(text)
    if record is None:
        return class_of(config).from_pretrained(path, config=config, **from_pretrained)
    as_saved = {name: getattr(text, name, None) for name in (*record.before, *record.added)}
    record.restore(text)
    model: PreTrainedModel = class_of(config).from_pretrained(path, config=config, **from_pretrained)
    try:
        repatch(model, record)
    except CheckpointError:
        raise
    except RopescaleError as error:
        raise CheckpointError(
            f"{path}: the ropescale record must be one that this version can carry out, got {error}; restore the "
            f"config.json that ropescale saved, or load with the version that saved it"
        ) from error
    _load_added(model, path, finding)
    loaded = text_of(model.config)
    if hasattr(model.config, EXPORT_FIELD):  # the same rotation, as one engine wants to be told it
        return model
    contradicted = [
        name for name, value in as_saved.items() if name != RECORD_FIELD and getattr(loaded, name, None) != value
    ]
    if contradicted:
        name = contradicted[0]
        raise CheckpointError(
            f"{path}: config.{name} must be what the ropescale record gives ({getattr(loaded, name)!r}), got "
            f"{as_saved[name]!r}; one of the two was edited: remove the record to keep the config as it is"
        )
    return model


def class_of(config: PreTrainedConfig) -> Any:
    """What loads a model of this config: the class that saved it, where causal language models have no entry for it.

    So vision-language models load as they were saved, but for those that Transformers lists among causal language
    models too (Qwen3.5), which load as their text decoder.
    """
    named = getattr(transformers, (getattr(config, "architectures", None) or ("",))[0], None)
    listed = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if listed or named is None else named


def read_config(path: str, **finding: Any) -> PreTrainedConfig:
    """The config of a checkpoint in a folder or on a hub.

    Raises:
        CheckpointError: no checkpoint there.
    """
    try:
        return AutoConfig.from_pretrained(path, **finding)
    except Exception as error:  # config classes raise whatever their own code runs into
        raise CheckpointError(
            f"{path}: must be a folder with a Transformers checkpoint, or a hub id that can be reached, got "
            f"{type(error).__name__}: {first_line(error)}; check the path or the connection"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, as far as a message of one line has room for it."""
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".;")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint; empty where there is no such file.

    Raises:
        CheckpointError: not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: must be a JSON file, got {type(error).__name__}: {first_line(error)}; restore the file "
            f"that belongs to the checkpoint"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path}: must hold a JSON object, got {type(values).__name__}; restore the file that belongs to the "
            f"checkpoint"
        )
    return values


def added_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the method of a patched model added to it, by name; empty for most methods."""
    return {name: one for name, one in model.named_parameters() if f".{NAME}." in name}


def _load_added(model: PreTrainedModel, path: str, finding: dict[str, Any]) -> None:
    """Give the parameters that a method added the values that were saved.

    Raises:
        CheckpointError: they are not among the saved weights.
    """
    added = added_parameters(model)
    if not added:
        return
    missing = dict(added)
    for file in weight_files(path, finding):
        with safe_open(file, framework="pt") as weights:
            for name in missing.keys() & set(weights.keys()):
                with torch.no_grad():
                    missing.pop(name).copy_(weights.get_tensor(name))
    if missing:
        raise CheckpointError(
            f"{path}: the weights must hold what {model.config.ropescale['method']} added to the model, got none for "
            f"{next(iter(missing))!r}; save the model again with save_pretrained"
        )


def size_of(model: nn.Module) -> int:
    """Bytes that the weights of a model take on disk; those that layers share count once."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


def weight_files(path: str, finding: dict[str, Any]) -> list[str]:
    """The files of a checkpoint's weights: one, or those that its index names."""
    quiet = {"_raise_exceptions_for_missing_entries": False, **finding}
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **quiet)
    if index is None:
        whole = cached_file(path, SAFE_WEIGHTS_NAME, **quiet)
        return [] if whole is None else [whole]
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [file for name in names if (file := cached_file(path, name, **quiet)) is not None]
