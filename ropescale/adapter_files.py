"""What lies in the folder of an adapter: PEFT's files, and the record and the parameters that stand beside them."""

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from ropescale.contents import read_tokenizer
from ropescale.errors import CheckpointError
from ropescale.files import parsed, read_text
from ropescale.records import Record

CONFIG_FILE = "adapter_config.json"
RECORD_FILE = "ropescale.json"
PARAMETERS_FILE = "ropescale.safetensors"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"  # of PEFT before safetensors
AGAIN = "save the adapter again"
HEADS = ("classifier", "score")  # what Transformers calls the last layer of a classifier


def record_of(path: str | Path, **finding: Any) -> Record | None:
    """The record that an adapter carries; None of a plain one.

    Raises:
        CheckpointError: no adapter there, or a damaged record.
    """
    if file_of(path, CONFIG_FILE, finding) is None:
        raise CheckpointError(
            f"{path}: must be the folder or hub id of a PEFT adapter, with its {CONFIG_FILE}, got none; give the "
            f"folder that save_pretrained of the adapted model wrote"
        )
    return None if file_of(path, RECORD_FILE, finding) is None else read_record(path, **finding)


def read_record(path: str | Path, **finding: Any) -> Record:
    """The record that an adapter carries.

    Raises:
        CheckpointError: none there, or a damaged one.
    """
    file = file_of(path, RECORD_FILE, finding)
    if file is None:
        raise CheckpointError(
            f"{path}: must be the folder or hub id of an adapter with a {RECORD_FILE}, got none; an adapter that was "
            f"trained without ropescale is loaded with peft.PeftModel.from_pretrained"
        )
    return Record.from_dict(parsed(read_text(Path(file), remedy=AGAIN), file, remedy=AGAIN))


def files_of(path: str | Path, **finding: Any) -> list[Path]:
    """The files of an adapter that decide what it computes."""
    names = (CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE, RECORD_FILE, PARAMETERS_FILE)
    return [Path(file) for name in names if (file := file_of(path, name, finding))]


def tokenizer_of(path: str | Path) -> Any:
    """The tokenizer of a folder or hub id, as beside an adapter; None without one.

    Raises:
        CheckpointError: a damaged one.
    """
    return None if file_of(path, "tokenizer_config.json", {}) is None else read_tokenizer(str(path))


def named_base(adapter: str | Path) -> str:
    """The base that an adapter's config names.

    Raises:
        CheckpointError: no adapter there, or none named.
    """
    file = file_of(adapter, CONFIG_FILE, {})
    if file is None:
        raise CheckpointError(
            f"{adapter}: must be the folder or hub id of an adapter, got no {CONFIG_FILE}; check the path"
        )
    named = parsed(read_text(Path(file), remedy=AGAIN), file, remedy=AGAIN).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"{adapter}: the {CONFIG_FILE} must name the base of the adapter, got none; give base=MODEL"
        )
    return named


def labels_of(adapter: str | Path, finding: dict[str, Any]) -> int | None:
    """How many labels the head has that an adapter brings along; None where it brings none."""
    file = file_of(adapter, WEIGHTS_FILE, finding)
    if file is None:
        return None
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 # not a mapping
                if name.rpartition(".")[0].rpartition(".")[2] in HEADS and name.endswith(".weight"):
                    return int(weights.get_slice(name).get_shape()[0])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: must be a whole safetensors file, got one that cannot be read ({error}); save the adapter again"
        ) from error
    return None


def file_of(path: str | Path, name: str, finding: dict[str, Any]) -> str | None:
    """A file of a folder or hub repository on this disk; None where there is none."""
    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    there = Path(path, finding.get("subfolder") or "", name)
    if os.path.lexists(there) and not os.path.isfile(there):  # which would count as none: a record would be lost
        raise CheckpointError(f"{there}: must be a file, got a folder, a pipe or a link to none; {AGAIN}")
    try:
        file: str | None = cached_file(str(path), name, **quiet, **finding)
    except OSError:  # neither a folder nor a hub id
        return None
    return file
