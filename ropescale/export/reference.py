"""What an export is held against: the patched model, from what was exported."""

import warnings
from pathlib import Path

from torch import nn

from ropescale.contents import read_config
from ropescale.errors import CheckpointError
from ropescale.export import weights
from ropescale.export.origin import source_in
from ropescale.export.subject import Subject
from ropescale.families.parts import text_of
from ropescale.heads import require_language_model
from ropescale.injection.patch import patch_of
from ropescale.patching import repatch
from ropescale.records import saved_record
from ropescale.wrappers import bare


def tokenizer_folder(folder: Path, adapter: str | Path | None) -> Path:
    """Where the tokenizer of the patched model is: with the adapter, where it has one."""
    return folder if adapter is None or not Path(adapter, "tokenizer_config.json").is_file() else Path(adapter)


def reference_folder(subject: Subject, reference: str | Path | None, adapter: str | Path | None) -> Path:
    """Where the weights of the patched model are: in what was exported; else, without an adapter, in the export.

    Raises:
        CheckpointError: nowhere.
    """
    if reference is None:
        reference = source_in(subject.origin, subject.path) or subject.source or None
    if reference is not None:
        return weights.local_folder(str(reference))
    if subject.path.is_dir() and adapter is None:
        return subject.path.resolve()
    raise CheckpointError(
        f"reference: must be the model that {subject.path} was made from, got none, and nothing in it says which; "
        f"pass reference=SRC"
    )


def reference_model(subject: Subject, folder: Path, adapter: str | Path | None) -> nn.Module:
    """The patched model in float32: the weights of a folder, with what the record says done to them.

    That is the record of the adapter where it carries one, else that of the export, else that of the folder. An
    adapter is on the model as PEFT runs it, never merged: what merging does is what is verified.
    """
    config = read_config(str(folder))
    require_language_model(config, str(folder))
    model: nn.Module = weights.loaded(folder) if adapter is None else weights.adapted(folder, adapter)
    model = model.float().eval()
    if adapter is None:
        subject.rounded(model)
    record = subject.record or saved_record(text_of(config))
    if record is not None and patch_of(model) is None:
        with warnings.catch_warnings(action="ignore"):  # of one rotary for layers of several kinds: said at patch time
            repatch(bare(model), record)
    return model
