"""Files of weights, copied without the rotary tables that old checkpoints hold among them.

Transformers computes the frequencies from the config and passes such tables over, but they are those of the old
length: an engine that reads them would rotate by them. Every weight is as it was, and none is held in memory.
"""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import torch

from ropescale.errors import CheckpointError, shortened
from ropescale.files import read_json

SAFE, TORCH = ".safetensors", ".bin"
INDEX = ".index.json"  # how the name of a file ends that says which weight is in which file
TABLES = ("inv_freq", "cos_cached", "sin_cached")
TOWERS = ("audio", "vision", "visual")  # whose rotations are none of the text's
LONGEST_NAME = 255  # characters, by most systems
CHUNK = 2**24  # bytes copied at a time
LONGEST_HEADER = 10**8  # bytes, by the format


def is_table(name: str) -> bool:
    """Whether a tensor of this name holds what the text's rotary module computes from the config."""
    *place, last = name.split(".")
    known = last in TABLES or last.endswith(f"_{TABLES[0]}")
    return known and not any(tower in part for part in place for tower in TOWERS)


def tables_in(file: Path) -> dict[str, int]:
    """The rotary tables in a file of weights, with their bytes; none where it cannot be read as one."""
    if file.suffix == SAFE:
        entries, _ = _header(file)
        sizes = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in entries.items()}
    elif file.suffix == TORCH:
        tensors = {name: tensor for name, tensor in _unpickled(file).items() if isinstance(tensor, torch.Tensor)}
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    else:
        sizes = {}
    return {name: size for name, size in sizes.items() if is_table(name)}


def names_in(file: Path) -> set[str]:
    """The names of the tensors in a safetensors file; none where it cannot be read as one."""
    return set(_header(file)[0])


def require_whole(file: Path) -> None:
    """Refuse a file of weights that was cut off.

    Raises:
        CheckpointError: it ends before its last tensor, or cannot be read.
    """
    size = file.stat().st_size
    if file.suffix == SAFE:
        entries, data = _header(file)
        end = data + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        whole = data > 0 and end == size
    else:
        with _opened(file) as read:
            zipped = read.read(2) == b"PK"
        whole = size > 0 and (not zipped or zipfile.is_zipfile(file))
    if not whole:
        raise CheckpointError(
            f"{file}: must be a whole file of weights, got one of {size:,} bytes that ends early or cannot be read; "
            f"fetch it again"
        )


def files_of_index(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        CheckpointError: a damaged index, one that names a place elsewhere, or a file that is not there.
    """
    paths = [index.parent / name for name in sorted(set(read_index(index).values()))]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"{path}: must be a whole safetensors file, got none, and {index.name} names it; fetch it again"
            )
    return paths


def require_as_indexed(index: Path) -> None:
    """Hold the files of a folder against its index: every tensor where it says, and no other.

    Raises:
        CheckpointError: they differ.
    """
    files = files_of_index(index)
    places = {name: index.parent / file for name, file in read_index(index).items()}
    actual = {name: file for file in files for name in names_in(file)}
    wrong = sorted(name for name in {*places, *actual} if places.get(name) != actual.get(name))
    if wrong:
        raise CheckpointError(
            f"{index}: must name the file of every tensor, got {wrong[0]!r} "
            f"{'elsewhere' if wrong[0] in actual else 'nowhere'} ({len(wrong)} such); fetch the checkpoint again"
        )


def bring(start: Path, end: Path, advance: Callable[[int], None] = lambda count: None) -> dict[str, int]:
    """Copy a file, one of weights without its rotary tables; returns those, with their bytes.

    Args:
        start: the file.
        end: the copy.
        advance: told how many bytes were done.
    """
    tables = tables_in(start)
    if tables and start.suffix == TORCH:
        try:
            torch.save({name: tensor for name, tensor in _unpickled(start).items() if name not in tables}, end)
        except RuntimeError as error:  # how torch says that a disk is full
            raise OSError(str(error)) from error
        advance(start.stat().st_size)
    else:
        with _opened(start) as read, end.open("wb") as written:
            spans = [(0, start.stat().st_size)] if not tables else _begun(start, written, tables)
            for begin, stop in spans:
                read.seek(begin)
                while begin < stop and (chunk := read.read(min(CHUNK, stop - begin))):
                    written.write(chunk)
                    advance(len(chunk))
                    begin += len(chunk)
    shutil.copystat(start, end)
    return tables


def link(start: Path, end: Path) -> dict[str, int]:
    """Make a link to a file of weights in the place of a copy; one that holds rotary tables is copied without them.

    Args:
        start: the file.
        end: the link.
    """
    if tables_in(start):
        return bring(start, end)
    end.symlink_to(start.resolve())
    return {}


def read_index(file: Path) -> dict[str, str]:
    """Which weight is in which file beside an index, by the names of both.

    Raises:
        CheckpointError: a damaged index, or one that names a file outside its folder.
    """
    places = read_json(file).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{file}: must be an index of weights, got {shortened(places)} for its weight_map; fetch it again"
        )
    for name, place in places.items():
        if not isinstance(place, str) or not _within(place):
            raise CheckpointError(
                f"{file}: weights must be in files of its own folder, got {shortened(place)} for {name!r}; fetch the "
                f"index again from somebody you trust"
            )
    return places


def _within(place: str) -> bool:
    """Whether a path in a file is one below that file's folder, on any system."""
    posix, windows = PurePosixPath(place), PureWindowsPath(place)
    return (
        place.isprintable()  # no zero, and no half of a letter, which no system takes
        and len(place) <= LONGEST_NAME
        and bool(posix.parts)
        and not (posix.is_absolute() or windows.drive or windows.root)
        and ".." not in (*posix.parts, *windows.parts)
    )


def index_without(index: dict[str, Any], tables: dict[str, int]) -> dict[str, Any]:
    """What an index says where these tensors were left out of its files."""
    metadata = dict(index.get("metadata") or {})
    if isinstance(metadata.get("total_size"), int):
        metadata["total_size"] -= sum(tables.values())
    return {
        **index,
        "metadata": metadata,
        "weight_map": {name: file for name, file in index["weight_map"].items() if name not in tables},
    }


def left_out(tables: dict[str, int]) -> str:
    """What is said of a copy that is without these tables; nothing of one that had none."""
    if not tables:
        return ""
    return (
        f"{len(tables)} rotary tables among the weights, {next(iter(tables))!r} first, are those of the old length, "
        f"and the copy is without them: they are computed from the config"
    )


def _begun(start: Path, written: Any, tables: dict[str, int]) -> list[tuple[int, int]]:
    """Write the header of a safetensors file without these tensors; returns the spans of its bytes that follow."""
    entries, data = _header(start)
    kept = sorted((entry["data_offsets"], name, entry) for name, entry in entries.items() if name not in tables)
    header: dict[str, Any] = {}
    spans, place = [], 0
    for (begin, stop), name, entry in kept:
        header[name] = {**entry, "data_offsets": [place, place + stop - begin]}
        spans.append((data + begin, data + stop))
        place += stop - begin
    with _opened(start) as read:
        metadata = json.loads(read.read(data)[8:]).get("__metadata__")
    if metadata is not None:
        header = {"__metadata__": metadata, **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    written.write(len(text).to_bytes(8, "little") + text)
    return spans


def _opened(file: Path) -> IO[bytes]:
    """A file of weights to be read.

    Raises:
        CheckpointError: the system does not let it be read.
    """
    try:
        return file.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"{file}: must be a file that can be read, got {error.strerror}; make it readable, or fetch it again"
        ) from error


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file and where its data begin; no entries where it is none."""
    with _opened(file) as read:
        length = int.from_bytes(read.read(8), "little")
        if length > min(LONGEST_HEADER, file.stat().st_size - 8):
            return {}, 0
        try:
            header = json.loads(read.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            whole = all(0 <= entry["data_offsets"][0] <= entry["data_offsets"][1] for entry in entries.values())
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            return {}, 0
    return (entries, 8 + length) if whole else ({}, 0)


def _unpickled(file: Path) -> dict[str, Any]:
    """What torch saved in a file, tensors mapped and not read; nothing where it cannot be mapped."""
    try:
        weights = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError):
        return {}
    return weights if isinstance(weights, dict) and all(isinstance(name, str) for name in weights) else {}
