"""Saved models on disk: a patched one brought back patched."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_accelerate_available

from ropescale.checkpoints import resolve
from ropescale.contents import FINDING, read_config, weight_files
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError, first_line
from ropescale.families.parts import text_of
from ropescale.heads import class_of, require_language_model
from ropescale.injection.late import NAME
from ropescale.injection.patch import lower_limits
from ropescale.patching import repatch
from ropescale.records import EXPORT_FIELD, RECORD_FIELD, saved_record
from ropescale.shards import INDEX, read_index
from ropescale.trust import is_refusal, refused, trusted, trusting


def load(path_or_name: str | Path, **from_pretrained: Any) -> PreTrainedModel:
    """A model from disk or hub, of the class that saved it, patched again if it was saved patched.

    Language models, classifiers, reward models, embedding models and bare decoders keep their heads: the class is the
    one that `architectures` of the config names; where it names none, that of a causal language model. `tiny` is the
    embedded checkpoint, `smollm2` the real one, obtained on first use. A checkpoint without a record loads as it is.
    After loading, `unpatch` gives the model that it was before it was patched. Further keywords go to
    `from_pretrained` of that class; Python code that lies in a checkpoint runs only with `trust_remote_code=True`.
    Weights of a head that are missing or that the class has no place for are named in a warning.

    Example:
        >>> import ropescale
        >>> model = ropescale.patch(ropescale.load("tiny"), method="yarn", factor=4)
        >>> model.save_pretrained("longer")
        >>> ropescale.record(ropescale.load("longer")).method
        'yarn'

    Raises:
        CheckpointError: no checkpoint there, weights that are not there, damaged or missing below the head, a class
            that Transformers does not have, a damaged record, or one that the rest of the config contradicts.
        InvalidArgumentError: neither a path nor a name.
    """
    path, config, keywords = located(path_or_name, from_pretrained)
    loaded = from_weights(path, config, class_of(config, trusted=_trusted(keywords)), keywords)
    warn_of_lost(path, loaded)
    if loaded.missing:
        warnings.warn(
            f"{path}: the weights hold none for {_some(loaded.missing)} of {type(loaded.model).__name__}, so its head "
            f"is random; train it, or pass a config whose architectures names the class that fits the weights",
            stacklevel=2,
        )
    return loaded.model


def load_language_model(path_or_name: str | Path, **from_pretrained: Any) -> PreTrainedModel:
    """As `load`, for what reads the probability of a next token: nothing but a causal language model, with its head.

    Raises:
        UnsupportedModelError: a model without a head over the vocabulary.
        CheckpointError: weights without that head; whatever else `load` raises.
        RopescaleError: whatever else `load` raises.
    """
    path, config, keywords = located(path_or_name, from_pretrained)
    require_language_model(config, str(path_or_name), trusted=_trusted(keywords))
    loaded = from_weights(path, config, class_of(config, trusted=_trusted(keywords)), keywords)
    warn_of_lost(path, loaded)
    if loaded.missing:
        raise incomplete(path, loaded.missing)
    return loaded.model


@dataclass(frozen=True)
class Loaded:
    """A model, and what did not fit between its head and the weights of its checkpoint."""

    model: PreTrainedModel
    missing: list[str]  # parameters of the head that the weights do not hold: they are random
    lost: list[str]  # weights of a head that the model does not have


def from_weights(path: str, config: PreTrainedConfig, loader: Any, keywords: dict[str, Any]) -> Loaded:
    """The model of a folder or hub id, patched again if its config says so.

    Args:
        path: a folder or hub id.
        config: of the checkpoint; it is written into.
        loader: the class, as `class_of` gives it.
        keywords: of its `from_pretrained`.

    Raises:
        CheckpointError: as `load` says.
    """
    text = text_of(config)
    record = saved_record(text)
    if record is None:
        return _read(path, config, loader, keywords)
    as_saved = {name: getattr(text, name, None) for name in (*record.before, *record.added)}
    record.restore(text)
    read = _read(path, config, loader, keywords)
    model = read.model
    lower_limits(model, record)
    try:
        repatch(model, record)
    except CheckpointError:
        raise
    except RopescaleError as error:
        raise CheckpointError(
            f"{path}: the ropescale record must be one that this version can carry out, got {error}; restore the "
            f"config.json that ropescale saved, or load with the version that saved it"
        ) from error
    _load_added(model, path, {name: keywords[name] for name in FINDING if name in keywords})
    loaded = text_of(model.config)
    if hasattr(model.config, EXPORT_FIELD):  # the same rotation, as one engine wants to be told it
        return read
    contradicted = [
        name for name, value in as_saved.items() if name != RECORD_FIELD and getattr(loaded, name, None) != value
    ]
    if contradicted:
        name = contradicted[0]
        raise CheckpointError(
            f"{path}: config.{name} must be what the ropescale record gives ({getattr(loaded, name)!r}), got "
            f"{as_saved[name]!r}; one of the two was edited: remove the record to keep the config as it is"
        )
    return read


def located(path_or_name: str | Path, from_pretrained: dict[str, Any]) -> tuple[str, PreTrainedConfig, dict[str, Any]]:
    """Where a checkpoint is, its config, to be written into, and the keywords that are left.

    Raises:
        InvalidArgumentError: neither a path nor a name.
        CheckpointError: no checkpoint there.
    """
    if not isinstance(path_or_name, (str, Path)):
        raise InvalidArgumentError(
            f"load: path_or_name must be a path, a hub id or a short name, got {type(path_or_name).__name__}; "
            f"a model that is loaded already is patched with ropescale.patch(model)"
        )
    if from_pretrained.get("output_loading_info"):
        raise InvalidArgumentError(
            "output_loading_info: must be left out, since a model alone is returned, got True; what does not fit is "
            "named in an error or a warning"
        )
    path = resolve(str(path_or_name))
    keywords = {name: value for name, value in from_pretrained.items() if name != "output_loading_info"}
    config = keywords.pop("config", None)
    if config is None:
        finding = {name: keywords[name] for name in FINDING if name in keywords}
        with trusting(_trusted(keywords)):
            config = read_config(path, **finding)
    return path, copy.deepcopy(config), keywords  # the caller's stays as it is


def _trusted(keywords: dict[str, Any]) -> bool:
    return bool(keywords.get("trust_remote_code", trusted()))


def _read(path: str, config: PreTrainedConfig, loader: Any, keywords: dict[str, Any]) -> Loaded:
    """The model as it was before any patch.

    Raises:
        CheckpointError: weights that cannot be loaded, or missing below the head.
    """
    _require_index(Path(path, keywords.get("subfolder") or ""))
    try:
        asked = {"trust_remote_code": trusted(), **keywords}
        model, info = loader.from_pretrained(path, config=config, output_loading_info=True, **asked)
    except (ImportError, MemoryError, RopescaleError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors, torch and the model's own code raise whatever they run into
        if is_refusal(error):
            raise refused(path) from error
        raise CheckpointError(
            f"{path}: must hold weights that Transformers can load in the way that was asked, got "
            f"{type(error).__name__}: {first_line(error)}; fetch the checkpoint again, or correct what was asked"
        ) from error
    missing = sorted(info["missing_keys"])
    headless = not isinstance(getattr(model, model.base_model_prefix, None), nn.Module)
    below = [name for name in missing if headless or name.startswith(f"{model.base_model_prefix}.")]
    if below:
        raise incomplete(path, below)
    first = {name: name.partition(".")[0] for name in info["unexpected_keys"]}
    lost = sorted(name for name, part in first.items() if part != NAME and not hasattr(model, part))
    return Loaded(model, missing, lost)


def _require_index(folder: Path) -> None:
    """Refuse an index of weights that leads out of its folder, which Transformers would follow.

    Raises:
        CheckpointError: such an index, or a damaged one.
    """
    for file in sorted(folder.glob(f"*{INDEX}")) if folder.is_dir() else ():
        read_index(file)


def require_complete(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse files of weights that do not hold what Transformers needs of them, reading their headers alone.

    Those of a quantised checkpoint are not looked at: what they have to hold is known to its quantiser.

    Args:
        folder: of a checkpoint.
        config: of the model as it was before any patch.

    Raises:
        CheckpointError: weights that are missing, or of other shapes.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    nowhere = {"device_map": "meta"} if is_accelerate_available() else {}  # which Transformers needs accelerate for
    loaded = _read(str(folder), config, class_of(config), nowhere)
    if loaded.missing:
        raise incomplete(folder, loaded.missing)


def warn_of_lost(path: str | Path, loaded: Loaded) -> None:
    """Say in a warning what weights of a head the model has no place for."""
    if loaded.lost:
        warnings.warn(
            f"{path}: the weights hold {_some(loaded.lost)}, for which {type(loaded.model).__name__} has no place; if "
            f"they are wanted, pass a config whose architectures names the class that fits the weights",
            stacklevel=3,
        )


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def incomplete(path: str | Path, missing: list[str]) -> CheckpointError:
    """The error for weights that a checkpoint should hold and does not."""
    return CheckpointError(
        f"{path}: the weights must be complete, got none for {missing[0]!r} ({len(missing)} missing); fetch the "
        f"checkpoint again, or pass a config that fits the weights"
    )


def counted(name: str) -> tuple[PreTrainedConfig, int]:
    """The config of a checkpoint, and the parameters of the model that it builds: on no device, without weights.

    Raises:
        CheckpointError: no checkpoint there, or a config from which no model can be built.
        UnsupportedModelError: a class that Transformers does not have.
    """
    _, config, _ = located(name, {})
    built = copy.deepcopy(config)
    if (record := saved_record(text_of(built))) is not None:
        record.restore(text_of(built))
    loader = class_of(built, trusted=trusted())
    try:
        with torch.device("meta"):
            model = loader._from_config(built) if hasattr(loader, "_from_config") else loader.from_config(built)
    except Exception as error:  # model classes raise whatever their own code runs into
        raise CheckpointError(
            f"{name}: must have a config that a model can be built from, got {type(error).__name__}: "
            f"{first_line(error)}; repair the config"
        ) from error
    return config, int(model.num_parameters())


def added_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the method of a patched model added to it, by name; empty for most methods."""
    return {name: parameter for name, parameter in model.named_parameters() if NAME in name.split(".")}


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
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
