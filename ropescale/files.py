"""Files that are read: ordinary ones, of a size that fits; what is wrong with one is said in words that name it.

A folder may come from somebody else: a pipe would be waited for without end, a device read without end, and brackets
within brackets overflow whatever walks them.
"""

import json
import stat
from pathlib import Path
from typing import Any

from ropescale.errors import CheckpointError

LARGEST = 64 * 2**20  # bytes: the index of the largest models has 20 million
DEEPEST = 64  # brackets within brackets: those of configs have a few
REMEDY = "restore the file that belongs to the checkpoint"


def read_text(path: Path, *, largest: int = LARGEST, remedy: str = REMEDY) -> str:
    """The text of a file in UTF-8.

    Args:
        path: the file.
        largest: bytes that it may have.
        remedy: what to do where it cannot be read.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: no ordinary file, one that is too large or cannot be read, or no UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: must be a file, got a folder, a device or a pipe; {remedy}")
        if status.st_size > largest:
            raise CheckpointError(f"{path}: must be of at most {largest:,} bytes, got {status.st_size:,}; {remedy}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(
            f"{path}: must be text in UTF-8, got {type(error).__name__}: {said}; {remedy}"
        ) from error


def parsed(text: str, what: str | Path, *, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object that a text holds.

    Args:
        text: the JSON.
        what: whose it is, for the message.
        remedy: what to do where it is none.

    Raises:
        CheckpointError: not a JSON object, or one with brackets within brackets without end.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what}: must be a JSON file, got {type(error).__name__}: {error or 'nothing more'}; {remedy}"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{what}: must hold a JSON object, got {type(values).__name__}; {remedy}")
    level: list[Any] = [values]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise CheckpointError(f"{what}: must be of at most {DEEPEST} brackets within brackets, got more; {remedy}")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint; empty where there is no such file.

    Raises:
        CheckpointError: not a JSON object that can be read.
    """
    try:
        return parsed(read_text(path), path)
    except FileNotFoundError:
        return {}


def object_of(text: str) -> dict[str, Any] | None:
    """The JSON object that an argument is, or that the file holds which it names; None where there is none."""
    try:
        values = json.loads(text if text.lstrip()[:1] in ("{", "[") else read_text(Path(text)))
    except (CheckpointError, OSError, RecursionError, ValueError):
        return None
    return values if isinstance(values, dict) else None
