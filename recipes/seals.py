"""Folders that are known to be whole: what is written into one is named in it with a digest, and checked later.

A disk may lose or change what was written, whole files at a power loss among it. This room knows files and nothing of
what is in them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from ropescale.digest import bytes_of

SEAL = "digests.json"


def seal(folder: Path) -> None:
    """Write what a folder holds, after all of it has reached the disk."""
    digests = {}
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.name != SEAL):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    with (folder / SEAL).open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder: a file that is missing, or not as it was written; None for a whole one."""
    try:
        digests = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        names = digests.items()
    except (OSError, ValueError, AttributeError):
        return f"{SEAL} is missing or damaged"
    for name, expected in names:
        try:
            with (folder / name).open("rb") as file:
                actual = hashlib.file_digest(file, "blake2b").hexdigest()
        except (OSError, ValueError):
            return f"{name} is missing or cannot be read"
        if actual != expected:
            return f"{name} is not as it was written"
    return None


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Sixteen hex digits for named tensors, in the order of their names."""
    seen = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        seen.update(name.encode())
        for piece in bytes_of(tensor):
            seen.update(piece)
    return seen.hexdigest()
