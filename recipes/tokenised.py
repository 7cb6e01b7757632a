"""Documents as token ids on disk: written once, then read as slices of one memory map.

A folder holds `tokens.bin` (int32, all documents one after the other) and `documents.npz` (where each ends, and a
digest of each). Folders are complete or not there at all, also when several processes want the same one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
from filelock import FileLock
from rich.console import Console
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.evals.tokens import leading_token

VERSION = 1  # of what is written; part of every key
BATCH = 2**21  # characters encoded at once, unless one document has more

Ids = Any  # [tokens] int32, a numpy array: numpy's own types would say no more
Advance = Callable[[int, int], None]  # documents, tokens


@dataclass(frozen=True)
class Tokens:
    """The documents of one folder, by number."""

    ids: Ids  # of all documents
    ends: Any  # [documents] int64
    digests: Any  # [documents] 16 bytes each
    empty: int  # documents that had no text, which are not among these

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each document."""
        sizes: list[int] = numpy.diff(self.ends, prepend=0).tolist()
        return sizes

    def slice(self, document: int, start: int, stop: int) -> Ids:
        """Tokens `start` to `stop` of one document."""
        begin = int(self.ends[document - 1]) if document else 0
        return self.ids[begin + start : begin + stop]


def read_tokens(folder: Path) -> Tokens:
    """The documents that `write_tokens` left in a folder."""
    with numpy.load(folder / "documents.npz") as stored:
        ends, digests, empty = stored["ends"], stored["digests"], int(stored["empty"])
    size = int(ends[-1]) if len(ends) else 0
    ids = numpy.memmap(folder / "tokens.bin", dtype=numpy.int32, mode="r") if size else numpy.empty(0, numpy.int32)
    return Tokens(ids, ends, digests, empty)


def write_tokens(folder: Path, documents: Iterable[tuple[bytes, Sequence[int]]], advance: Advance) -> None:
    """Write documents, each a digest and its ids, as they come; one without ids is counted and left out."""
    ends: list[int] = []
    digests: list[bytes] = []
    end = empty = 0
    with (folder / "tokens.bin").open("wb") as file:
        for told, ids in documents:
            if not ids:
                empty += 1
                continue
            file.write(numpy.asarray(ids, dtype=numpy.int32).tobytes())
            digests.append(told)
            end += len(ids)
            ends.append(end)
            advance(1, len(ids))
    numpy.savez(
        folder / "documents.npz",
        ends=numpy.array(ends, dtype=numpy.int64),
        digests=numpy.frombuffer(b"".join(digests), dtype=numpy.uint8).reshape(len(digests), 16),
        empty=empty,
    )


def encoded(texts: Iterable[str | None], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[bytes, list[int]]]:
    """A digest of each text, and its ids: what the tokenizer puts first by itself, the text, the end of sequence.

    A document without text comes without ids.
    """
    first = leading_token(tokenizer)
    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for batch in _batches(texts):
        given = [text for text in batch if text]
        found = iter(tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"] if given else [])
        for text in batch:
            yield content_digest((text or "").encode()), [*first, *next(found), *last] if text else []


def _batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, 1)):
        size = len(batch[0] or "")
        while size < BATCH and (following := list(islice(remaining, 1))):
            batch += following
            size += len(following[0] or "")
        yield batch


def content_digest(content: bytes) -> bytes:
    """Sixteen bytes by which equal documents are known."""
    return hashlib.blake2b(content, digest_size=16).digest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of everything that decides which ids a text gets."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for state in ("padding", "truncation"):  # left by the last call
            rules.pop(state, None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return digest(rules, leading_token(tokenizer), tokenizer.eos_token_id)


def digest(*facts: Any) -> str:
    """Sixteen hex digits for these facts, which JSON can hold."""
    written = json.dumps([VERSION, *facts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def built(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, filled by `build` if it is not there.

    The work is done in a sibling folder which is renamed at the end, under a lock that other processes wait for.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    if folder.exists():
        return folder
    work = folder.with_suffix(".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        with Console(stderr=True).status(f"data: waiting for another process that prepares {folder.name}"):
            lock.acquire()
        try:
            if folder.exists():  # the process that held the lock has filled it
                return folder
            shutil.rmtree(work, ignore_errors=True)  # what a killed run left
            work.mkdir()
            try:
                build(work)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        finally:
            lock.release()
    except OSError as error:
        raise CheckpointError(
            f"cache_dir: must be a folder with room for the tokens, got {str(folder.parent)!r} ({error}); make room, "
            f"or name another folder"
        ) from error
    return folder


def require_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives no tokens: a folder without its files loads as one.

    Raises:
        InvalidArgumentError: it gives none.
    """
    if not tokenizer.encode("a b", add_special_tokens=False):
        raise InvalidArgumentError(
            "tokenizer: a text must have tokens, got a tokenizer that gives none; load it from a folder with "
            "tokenizer files"
        )
