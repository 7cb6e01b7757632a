"""The weights that are exported: fetched where they are on a hub, loaded, and with an adapter on them."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedConfig

from ropescale import adapter_files, adapters
from ropescale.checkpoint import Loaded, from_weights, incomplete, warn_of_lost
from ropescale.checkpoints import resolve
from ropescale.contents import read_config
from ropescale.errors import CheckpointError, ExportError, first_line
from ropescale.export.companions import COMPANIONS, POOLING, PROCESSORS
from ropescale.families.parts import place_of_text, text_of
from ropescale.families.support import require_family
from ropescale.heads import class_of
from ropescale.patching import repatch
from ropescale.records import Record, saved_record

INDEX = "model.safetensors.index.json"


def text_in(config: Any) -> Any:
    """The config of the text decoder in that of a model, in one of a family that is patched.

    Raises:
        UnsupportedModelError: no such family, or a decoder that no entry states.
    """
    if not isinstance(config, PreTrainedConfig):
        require_family(config)
    text = text_of(config)
    require_family(text)
    place_of_text(config)
    return text


def local_folder(name: str) -> Path:
    """The folder of a checkpoint by path, short name or hub id; one on a hub is fetched.

    Raises:
        CheckpointError: none there.
    """
    path = Path(resolve(name)).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise CheckpointError(
            f"{name}: must be the folder of a checkpoint, got a file; give its folder, or for a .gguf file patch_gguf"
        )
    read_config(name)  # says in words what is wrong with a name that is neither
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["config.json", "*.safetensors", INDEX, *COMPANIONS, *POOLING, *PROCESSORS]
            )
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: must be a hub id that can be fetched, got {type(error).__name__}: {first_line(error)}; check "
            f"the connection, or give a folder"
        ) from error


def loaded(folder: Path) -> nn.Module:
    """The model of a folder as it was before any patch of ours, with its head, in the type of its weights.

    Raises:
        CheckpointError: weights that are missing or broken.
        UnsupportedModelError: a family that is not patched.
    """
    checkpoint = _from_folder(folder)
    if checkpoint.missing:
        raise incomplete(folder, checkpoint.missing)
    warn_of_lost(folder, checkpoint)
    model: nn.Module = checkpoint.model
    return model


def _from_folder(folder: Path, adapter: str | Path | None = None) -> Loaded:
    """The same, with the head that an adapter was trained with, if one is given."""
    config = read_config(str(folder))
    text = text_in(config)
    if (done := saved_record(text)) is not None:
        done.restore(text)
    loader = class_of(config) if adapter is None else adapters.loader_for(config, adapter)
    return from_weights(str(folder), config, loader, {"dtype": "auto"})


def record_of(adapter: str | Path) -> Record | None:
    """How the base of an adapter was patched when it was trained; None of an adapter that does not say.

    Raises:
        CheckpointError: no adapter there, or a damaged record.
    """
    if not (Path(adapter) / adapter_files.CONFIG_FILE).is_file():
        raise CheckpointError(
            f"adapter: must be a folder with a PEFT adapter ({adapter_files.CONFIG_FILE}), got {str(adapter)!r}; give "
            f"the folder that save_pretrained of the adapted model wrote"
        )
    return adapter_files.record_of(adapter)


def adapted(folder: Path, adapter: str | Path) -> Any:
    """The model of a folder with an adapter on it, as PEFT runs it.

    It is patched as it was in training where the adapter carries a record, and else as it was before any patch.

    Raises:
        CheckpointError: no adapter there, or one of another model.
        ExportError: PEFT is not installed.
        RopescaleError: whatever `load_adapter` raises.
    """
    try:
        import peft  # noqa: F401 # the modules below import it where they need it
    except ImportError as error:
        raise ExportError(
            "adapter: needs the package peft to be merged, got none installed; pip install ropescale[train]"
        ) from error
    trained = record_of(adapter)
    checkpoint = _from_folder(folder, adapter)
    base: Any = checkpoint.model
    if trained is None:
        wrapped: Any = adapters.put_on(base, adapter)
    else:
        if (done := saved_record(text_of(read_config(str(folder))))) is not None:
            repatch(base, done)  # load_adapter compares the two records
        wrapped = adapters.load_adapter(base, adapter)
    adapters.require_head(base, checkpoint.missing, adapter)
    return wrapped
