"""Documents as token ids on disk: written once, then read as slices of one memory map.

A folder holds `tokens.bin` (int32, all documents one after the other), `documents.npz` (where each ends, and a
digest of each) and, where some tokens are not to be learnt, `learnt.bin` (a byte for each). Folders are complete or
not there at all, also when several processes want the same one, and made again where the disk has changed them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ropescale.destinations import cached
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.evals.tokens import leading_tokens
from ropescale.recipes.data.chats import written
from ropescale.recipes.data.sources import Document
from ropescale.recipes.seals import fault, seal

VERSION = 2  # of what is written; part of every key
BATCH = 2**17  # characters encoded at once: a tokenizer takes some 200 bytes for each
OVERLAP = 2**12  # characters that two parts of a longer text have in common

Ids = Any  # [tokens] int32, a numpy array: numpy's own types would say no more
Advance = Callable[[int, int], None]  # documents, tokens


@dataclass(frozen=True)
class Tokens:
    """The documents of one folder, by number."""

    ids: Ids  # of all documents
    ends: Any  # [documents] int64
    digests: Any  # [documents] 16 bytes each
    empty: int  # documents that had no text, which are not among these
    learnt: Any = None  # [tokens] bool, or None where every token is learnt

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each document."""
        sizes: list[int] = numpy.diff(self.ends, prepend=0).tolist()
        return sizes

    def slice(self, document: int, start: int, stop: int) -> Ids:
        """Tokens `start` to `stop` of one document."""
        return self.ids[self._at(document, start, stop)]

    def learnt_of(self, document: int, start: int, stop: int) -> Any:
        """[tokens] bool: which of them are to be learnt; True where all are."""
        return True if self.learnt is None else self.learnt[self._at(document, start, stop)]

    def _at(self, document: int, start: int, stop: int) -> Any:  # a slice, the name of which is taken here
        begin = int(self.ends[document - 1]) if document else 0
        return slice(begin + start, begin + stop)


class Encoded(NamedTuple):
    """A document as tokens."""

    digest: bytes
    ids: Ids  # or a list
    learnt: Any = None  # [tokens] bool, or None where every token is learnt


def read_tokens(folder: Path) -> Tokens:
    """The documents that `write_tokens` left in a folder."""
    with numpy.load(folder / "documents.npz") as stored:
        ends, digests, empty = stored["ends"], stored["digests"], int(stored["empty"])
    size = int(ends[-1]) if len(ends) else 0
    ids = numpy.memmap(folder / "tokens.bin", dtype=numpy.int32, mode="r") if size else numpy.empty(0, numpy.int32)
    masked = folder / "learnt.bin"
    learnt = numpy.memmap(masked, dtype=numpy.bool_, mode="r") if size and masked.exists() else None
    return Tokens(ids, ends, digests, empty, learnt)


def write_tokens(folder: Path, documents: Iterable[Encoded], advance: Advance) -> None:
    """Write documents as they come; one without ids is counted and left out."""
    ends: list[int] = []
    digests: list[bytes] = []
    end = empty = 0
    masked = False
    with (folder / "tokens.bin").open("wb") as file, (folder / "learnt.bin").open("wb") as mask:
        for content, ids, learnt in documents:
            if not len(ids):
                empty += 1
                continue
            file.write(numpy.asarray(ids, dtype=numpy.int32).tobytes())
            mask.write((numpy.ones(len(ids), dtype=numpy.bool_) if learnt is None else learnt).tobytes())
            masked = masked or learnt is not None
            digests.append(content)
            end += len(ids)
            ends.append(end)
            advance(1, len(ids))
    if not masked:
        (folder / "learnt.bin").unlink()
    numpy.savez(
        folder / "documents.npz",
        ends=numpy.array(ends, dtype=numpy.int64),
        digests=numpy.frombuffer(b"".join(digests), dtype=numpy.uint8).reshape(len(digests), 16),
        empty=empty,
    )


def encoded(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """A digest of each document, and its ids.

    Of a text: what the tokenizer puts first by itself, the text, the end of sequence. Of a conversation: what the
    template writes, of which the replies are learnt. A document without text comes without ids.

    Raises:
        InvalidArgumentError: a conversation that cannot be written.
    """
    first = leading_tokens(tokenizer)
    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for batch in _batches(documents):
        short = [text for text in batch if isinstance(text, str) and 0 < len(text) <= BATCH]
        encodings = iter(tokenizer(short, add_special_tokens=False, verbose=False)["input_ids"] if short else [])
        for document in batch:
            if isinstance(document, list):
                yield _conversation(document, tokenizer)
                continue
            if not document:
                ids = []
            else:
                ids = next(encodings) if len(document) <= BATCH else _long(document, tokenizer)[0].tolist()
            yield Encoded(content_digest((document or "").encode()), [*first, *ids, *last] if document else [])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, 1)):
        size = _characters(batch[0])
        while size < BATCH and (following := list(islice(remaining, 1))):
            batch += following
            size += _characters(following[0])
        yield batch


def _characters(document: Document) -> int:
    if isinstance(document, list):
        return sum(len(message["content"]) for message in document)
    return len(document or "")


def _conversation(messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    if not tokenizer.is_fast:
        raise InvalidArgumentError(
            f"data: conversations need a tokenizer that tells where its tokens stand, got {type(tokenizer).__name__}; "
            f"save the model with a fast tokenizer (tokenizer.json)"
        )
    text, replies = written(messages, tokenizer)
    ids, starts = _long(text, tokenizer)
    learnt = numpy.zeros(len(ids), dtype=numpy.bool_)
    for start, end in replies:
        learnt |= (starts >= start) & (starts < end)
    return Encoded(content_digest(text.encode()), ids, learnt)


def _long(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Any]:
    """The ids of a text and the character at which each begins, without what the tokenizer adds.

    A long text is encoded in parts that overlap, and taken over from one to the next where both have the same tokens
    at the same places throughout; where they never do, it is encoded at once.
    """
    if not tokenizer.is_fast:
        ids = numpy.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=numpy.int32)
        return ids, numpy.zeros(len(ids), dtype=numpy.int64)
    ids, starts = _part(text, 0, BATCH, tokenizer)
    reach = BATCH
    parts: list[tuple[Ids, Any]] = []
    while reach < len(text):
        begin = reach - OVERLAP
        more, places = _part(text, begin, begin + BATCH, tokenizer)
        # the first and last quarter of what is common may hang on where the parts begin and end
        low, high = begin + OVERLAP // 4, reach - OVERLAP // 4
        before, after = (slice(*numpy.searchsorted(edges, (low, high))) for edges in (starts, places))
        agreed = numpy.array_equal(ids[before], more[after]) and numpy.array_equal(starts[before], places[after])
        if not agreed or before.start == before.stop:
            return _part(text, 0, len(text), tokenizer)
        parts.append((ids[: before.start], starts[: before.start]))
        ids, starts, reach = more[after.start :], places[after.start :], begin + BATCH
    parts.append((ids, starts))
    return numpy.concatenate([one for one, _ in parts]), numpy.concatenate([one for _, one in parts])


def _part(text: str, begin: int, end: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Any]:
    """As `_long`, of the characters from `begin` to `end`."""
    encoding = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = numpy.asarray(encoding["input_ids"], dtype=numpy.int32)
    return ids, numpy.asarray([start for start, _ in encoding["offset_mapping"]], dtype=numpy.int64) + begin


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
    return digest(rules, leading_tokens(tokenizer), tokenizer.eos_token_id)


def digest(*facts: Any) -> str:
    """Sixteen hex digits for these facts, which JSON can hold."""
    written = json.dumps([VERSION, *facts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def built(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, filled by `build` if it is not there, or not as it was filled: then it is filled again.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """

    def make(work: Path) -> Path:
        if folder.exists():
            print(f"data: {folder} is damaged ({fault(folder)}) and is made again", file=sys.stderr)
            shutil.rmtree(folder)
        build(work)
        seal(work)
        return work

    def whole(place: Path) -> bool:
        return place.exists() and fault(place) is None

    try:
        waiting = f"data: waiting for another process that prepares {folder.name}"
        return cached(folder, make, whole=whole, waiting=waiting)
    except OSError as error:
        raise CheckpointError(
            f"cache_dir: must be a folder with room for the tokens, got {str(folder.parent)!r} ({error}); make room, "
            f"or name another folder"
        ) from error


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
