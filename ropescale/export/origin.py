"""What an export says of what it was made from, and how that is found again to verify it.

Exports are published, so nothing of a disk stands in them but the way from their own folder to a neighbour of it.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from ropescale.adapter_files import PARAMETERS_FILE, WEIGHTS_FILE
from ropescale.checkpoints import SHORT_NAMES
from ropescale.errors import CheckpointError

WEIGHTS = (WEIGHTS_FILE, "adapter_model.bin", PARAMETERS_FILE)


def origin_of(name: str, adapter: str | Path | None, destination: Path) -> dict[str, Any]:
    """The source by a public name or the way to it, and the adapter by the way to it and a digest of its weights.

    Args:
        name: of the source, as the caller gave it.
        adapter: its folder, if one was merged.
        destination: what is exported.
    """
    origin: dict[str, Any] = {}
    if source := public_name(name) or _way(name, destination):
        origin["source"] = source
    if adapter is not None:
        origin["adapter"] = {
            "name": Path(adapter).resolve().name,
            "path": _way(adapter, destination),
            "sha256": digest_of(adapter),
        }
    return origin


def moved(origin: dict[str, Any], start: Path, end: Path) -> dict[str, Any]:
    """What an export says, where a copy of it lies in another folder: ways are lost, names and digests stay."""
    if start.expanduser().resolve().parent == end.expanduser().resolve().parent:
        return origin
    kept = {name: value for name, value in origin.items() if name != "source" or public_name(str(value))}
    if isinstance(said := origin.get("adapter"), dict):
        kept["adapter"] = {**said, "path": ""}
    return kept


def read(text: str) -> dict[str, Any]:
    """What a file says that it was made from; nothing where it does not say it in JSON."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def public_name(name: str) -> str:
    """A source as a published file may name it: a short name or a hub id; nothing of a path or a live model."""
    known = name in SHORT_NAMES or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists())
    return name if known else ""


def source_in(origin: dict[str, Any], path: Path) -> str | None:
    """The source of an export, where it is found."""
    name = origin.get("source")
    if not isinstance(name, str) or not name:
        return None
    return name if public_name(name) else _there(name, path)


def adapter_in(origin: dict[str, Any], path: Path) -> Path | None:
    """The adapter that is in an export; None where none is.

    Raises:
        CheckpointError: it is not where it was, or has changed since.
    """
    said = origin.get("adapter")
    if not isinstance(said, dict):
        return None
    place = _there(str(said.get("path") or ""), path)
    if place is None:
        raise CheckpointError(
            f"adapter: must be the one that was merged into {path}, {said.get('name')!r}, got none, and it is not "
            f"where it was; pass adapter=DIR"
        )
    if digest_of(place) != said.get("sha256"):
        raise CheckpointError(
            f"adapter: must be the one that was merged into {path}, got {place!r}, whose weights have changed since; "
            f"pass adapter=DIR, or export it again"
        )
    return Path(place)


def digest_of(adapter: str | Path) -> str:
    """SHA-256 of the weights in an adapter's folder."""
    digest = hashlib.sha256()
    for name in WEIGHTS:
        if (file := Path(adapter, name)).is_file():
            with file.open("rb") as read:
                digest.update(hashlib.file_digest(read, "sha256").digest())
    return digest.hexdigest()


def _way(path: str | Path, destination: Path) -> str:
    """From the folder of an export to a neighbour of it; empty for what is farther away."""
    place = Path(path).expanduser()
    if not place.exists():
        return ""
    way = os.path.relpath(place.resolve(), destination.expanduser().resolve().parent)
    return way if Path(way).parts.count("..") <= 1 and not Path(way).is_absolute() else ""


def _there(way: str, path: Path) -> str | None:
    place = Path(os.path.normpath(path.expanduser().resolve().parent / way))
    return str(place) if way and not Path(way).is_absolute() and place.is_dir() else None
