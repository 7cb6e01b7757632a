"""Where training documents come from: short names, local files and folders, data sets of a hub.

A source is read as a stream of whole texts, one per document, and knows a fingerprint of what it would give. This
room knows files and `datasets`, no tokenizer.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from ropescale.errors import InvalidArgumentError
from ropescale.evals import texts

PASSKEY = "passkey"  # made, not read: see recipes/passkeys.py
SHORT_NAMES = ("passkey", "sotu", "sotu-sample", "stdlib")
TEXT = (".txt", ".md", ".rst")  # a file is a document
ROWS = {".jsonl": "json", ".jsonl.gz": "json", ".parquet": "parquet"}  # a row is a document; who reads them
OUTSIDE = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})  # of the standard library


@dataclass(frozen=True, kw_only=True)
class Source:
    """A stream of documents that can be read again."""

    name: str  # as the caller wrote it
    fingerprint: str  # changes when the documents do
    documents: Callable[[], Iterator[str | None]]  # None where a row has no text
    count: int | None = None  # documents, where that is known before reading


def find_source(name: str, *, text_field: str = "text", split: str = "train") -> Source:
    """The source that a short name, a path or a hub id stands for; nothing is read but local files' contents.

    `stdlib` is the sources of Python's standard library, `sotu` the presidents' messages that evaluations do not
    use (downloaded on first use), `sotu-sample` an embedded part of these. A path is a file, or a folder with such
    files: .txt, .md and .rst hold one document each, .jsonl, .jsonl.gz and .parquet one per row, in the field
    `text_field`. Anything else is a data set of the hub, `owner/name` or `owner/name:configuration`, of which `split`
    is streamed.

    Raises:
        InvalidArgumentError: no such path or data set, or no documents in it.
        CheckpointError: `sotu` cannot be obtained.
    """
    if name == "stdlib":
        return _standard_library()
    if name == "sotu":
        return _speeches(name, texts.training(texts.speeches()))
    if name == "sotu-sample":
        return _speeches(name, texts.training_sample())
    path = Path(name).expanduser()
    if path.exists():
        return _local(name, path, text_field)
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix in (*TEXT, *ROWS) or name.count("/") != 1:
        raise InvalidArgumentError(
            f"data: must be {', '.join(SHORT_NAMES)}, an existing path, or a hub id as in owner/name, got {name!r}; "
            f"check the path"
        )
    return _hub(name, text_field, split)


def _standard_library() -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if not OUTSIDE & set(file.relative_to(root).parts))
    if not files:
        raise InvalidArgumentError(
            f"data: 'stdlib' needs the sources of Python's standard library, got none in {str(root)!r}; "
            f"name a folder of texts instead"
        )
    return Source(
        name="stdlib",
        fingerprint=_contents(files),
        documents=lambda: (file.read_text(encoding="utf-8", errors="replace") for file in files),
        count=len(files),
    )


def _speeches(name: str, documents: Sequence[texts.Document]) -> Source:
    return Source(
        name=name,
        fingerprint=f"{name} {texts.PACKAGE} {texts.HELD_OUT_EVERY}",
        documents=lambda: (document.text for document in documents),
        count=len(documents),
    )


def _local(name: str, path: Path, text_field: str) -> Source:
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in found if file.name.endswith((*TEXT, *ROWS))]
    if not files:
        raise InvalidArgumentError(
            f"data: a path must lead to {', '.join((*TEXT, *ROWS))} files, got {name!r} without any; convert them"
        )

    def documents() -> Iterator[str | None]:
        for file in files:
            builder = next((builder for suffix, builder in ROWS.items() if file.name.endswith(suffix)), None)
            if builder is None:
                yield _text_of(file)
                continue
            opened = partial(
                datasets.load_dataset, builder, data_files={"train": [str(file)]}, split="train", streaming=True
            )
            yield from _field(opened, text_field, str(file))

    return Source(
        name=name,
        fingerprint=f"{_contents(files)} {text_field}",
        documents=documents,
        count=len(files) if all(file.name.endswith(TEXT) for file in files) else None,
    )


def _hub(name: str, text_field: str, split: str) -> Source:
    repository, _, configuration = name.partition(":")
    try:
        builder = datasets.load_dataset_builder(repository, configuration or None)
        stream = datasets.load_dataset(repository, configuration or None, split=split, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InvalidArgumentError(
            f"data: must be {', '.join(SHORT_NAMES)}, an existing path, or a data set of a hub that can be reached, "
            f"with split {split!r}, got {name!r} ({type(error).__name__}: {str(error).splitlines()[0]}); check the "
            f"name and the connection"
        ) from error
    info = builder.info.splits or {}
    return Source(
        name=name,
        fingerprint=f"{repository} {builder.config_id} {builder.hash} {split} {text_field}",
        documents=lambda: _field(lambda: stream, text_field, name),
        count=info[split].num_examples if split in info else None,
    )


def _field(opened: Callable[[], Iterable[dict[str, Any]]], text_field: str, where: str) -> Iterator[str | None]:
    """One field of a stream of rows.

    Raises:
        InvalidArgumentError: rows that cannot be read, are without that field, or have something else than text in it.
    """
    try:
        for row in opened():
            if text_field not in row:
                raise InvalidArgumentError(
                    f"text_field: rows of {where!r} must have it, got {text_field!r} where there are "
                    f"{', '.join(sorted(row))}; name the field that holds the text"
                )
            text = row[text_field]
            if not (text is None or isinstance(text, str)):
                raise InvalidArgumentError(
                    f"text_field: {text_field!r} of {where!r} must hold text, got a {type(text).__name__}; name the "
                    f"field that holds the text"
                )
            yield text
    except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise InvalidArgumentError(
            f"data: {where!r} must hold rows that datasets can read, got {type(error).__name__}: "
            f"{str(error).splitlines()[0]}; correct it, or leave it out"
        ) from error


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"data: {str(file)!r} must be UTF-8 text, got {type(error).__name__}; correct the file, or leave it out"
        ) from error


def _contents(files: list[Path]) -> str:
    """A digest of the files' bytes, in their order; neither names nor places matter."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
