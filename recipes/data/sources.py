"""Where training documents come from: short names, local files and folders, data sets of a hub.

A source is read as a stream of documents, each a whole text or a whole conversation, and knows a fingerprint of what
it would give. This room knows files and `datasets`, no tokenizer.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from ropescale.errors import InvalidArgumentError, shortened
from ropescale.evals import reading, texts

PASSKEY = "passkey"  # made, not read: see recipes/data/passkeys.py
SHORT_NAMES = ("passkey", "sotu", "sotu-sample", "stdlib")
TEXT_FIELD, SPLIT = "text", "train"
CHATS = ("messages", "conversations")  # fields of conversations, looked for where a row has no text
SPEAKERS = {  # what is called so in the field "from" of a message, and what templates call it
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}
OUTSIDE = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})  # of the standard library


Message = dict[str, Any]  # at least "role" and "content"
Document = str | list[Message] | None  # None where a row has no text


@dataclass(frozen=True, kw_only=True)
class Source:
    """A stream of documents that can be read again."""

    name: str  # as the caller wrote it
    fingerprint: str  # changes when the documents do
    documents: Callable[[], Iterator[Document]]
    count: int | None = None  # documents, where that is known before reading
    rows: bool = False  # whether it has rows with fields, and not texts alone
    splits: bool = False  # whether it has several splits


def find_source(name: str, *, text_field: str = TEXT_FIELD, split: str = SPLIT) -> Source:
    """The source that a short name, a path or a hub id stands for; nothing is read but local files' contents.

    `stdlib` is the sources of Python's standard library, `sotu` the presidents' messages that evaluations do not
    use (downloaded on first use), `sotu-sample` an embedded part of these. A path is a file, or a folder with such
    files, as `ropescale.evals.reading` knows them: of text a file is a document, of the others a row, in the field
    `text_field`, or a conversation in `messages` or `conversations`. Anything else is a data set of the hub,
    `owner/name` or `owner/name:configuration`, of which `split` is streamed.

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
    with reading.said(path, "data"):
        exists = path.exists()
    if exists:
        return _local(name, path, text_field, split)
    known = reading.ending(path) in reading.ENDINGS
    if path.is_absolute() or name.startswith((".", "~")) or known or name.count("/") != 1:
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
        fingerprint=reading.contents(files, "data"),
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


def _local(name: str, path: Path, text_field: str, split: str) -> Source:
    files = reading.files_of(path, "data", split=split)
    tables = {file for file in files if reading.ending(file) not in reading.TEXT}

    def documents() -> Iterator[Document]:
        none = True
        for file in files:
            field = text_field if file in tables else TEXT_FIELD
            for number, row in enumerate(reading.rows(file, "data", (field, *CHATS)), 1):
                none = False
                yield _document(row, field, f"row {number} of {str(file)!r}")
        if none:
            raise InvalidArgumentError(f"data: {name!r} must hold documents, got none; name another")

    return Source(
        name=name,
        fingerprint=f"{reading.contents(files, 'data')} {text_field}",
        documents=documents,
        count=None if tables else len(files),
        rows=bool(tables),
        splits=(path / "dataset_dict.json").is_file(),
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
        rows=True,
        splits=True,
    )


def _field(rows: Callable[[], Iterable[dict[str, Any]]], text_field: str, where: str) -> Iterator[Document]:
    """The documents of a stream of rows.

    Raises:
        InvalidArgumentError: rows that cannot be read, are without that field, or have something else than text in it.
    """
    try:
        for number, row in enumerate(rows(), 1):
            yield _document(row, text_field, f"row {number} of {where!r}")
    except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise InvalidArgumentError(
            f"data: {where!r} must hold rows that datasets can read, got {type(error).__name__}: {said}; correct it, "
            f"or leave it out"
        ) from error


def _document(row: dict[str, Any], text_field: str, where: str) -> Document:
    """The text or the conversation of a row.

    Raises:
        InvalidArgumentError: none in the field, or something that is neither.
    """
    field = text_field
    if field not in row and text_field == TEXT_FIELD:
        field = next((name for name in CHATS if name in row), field)
    if field not in row:
        raise InvalidArgumentError(
            f"text_field: {where} must have it, got {text_field!r} where there are {reading.fields_of(row)}; name the "
            f"field that holds the text or the conversation"
        )
    content = row[field]
    if content is None:
        return None
    if isinstance(content, str):
        return reading.cleaned(content)
    if isinstance(content, list) and content and all(isinstance(message, dict) for message in content):
        return [_message(message, where) for message in content]
    raise InvalidArgumentError(
        f"text_field: {field!r} in {where} must hold text or a list of messages, got {shortened(content)}; name the "
        f"field that does"
    )


def _message(message: dict[str, Any], where: str) -> Message:
    """A message as templates take it: `from` and `value` become `role` and `content`; what is None is left out."""
    kept = {name: value for name, value in message.items() if value is not None}
    speaker = kept.pop("from", None)
    if speaker is not None and "role" not in kept:
        kept["role"] = SPEAKERS.get(str(speaker))
        kept["content"] = kept.pop("value", None)
    content = kept.get("content", "")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(kept.get("role"), str) or not isinstance(content, str):
        raise InvalidArgumentError(
            f"data: a message in {where} must have a role and a content, or who it is from "
            f"({', '.join(sorted(SPEAKERS))}) and a value, of text, got {shortened(message)}; correct it, or leave "
            f"it out"
        )
    return {**kept, "content": reading.cleaned(content)}
