"""Documents of several sources filtered, split, weighed and packed, as options, tokenizer, length and seed say."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.recipes.data.account import Account, Count, SourceAccount
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.packing import Packing, Row, pack
from ropescale.recipes.data.passkeys import passkey_documents
from ropescale.recipes.data.progress import bar
from ropescale.recipes.data.sources import PASSKEY
from ropescale.recipes.data.tokenised import Encoded, Tokens, content_digest, read_tokens, write_tokens
from ropescale.recipes.data.writing import write_rows

MADE = "passkeys"  # folder of passkey documents on their way into rows


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


def mix(
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
    tokens = [pool.tokens for pool in ordered]
    for split, documents in (("train", chosen), ("held_out", kept)):
        write_rows(folder / f"{split}.arrow", packed[split].rows, tokens, documents, length, split)
    (folder / "account.json").write_text(json.dumps(account.to_dict(), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder / MADE, ignore_errors=True)  # the rows hold them


def _pool(name: str, tokens: Tokens, options: DataOptions, seed: str, seen: set[bytes]) -> _Pool:
    """The documents of a source: those dropped by a rule, held out, and left for training."""
    sizes = tokens.sizes
    digests = [row.tobytes() for row in tokens.digests]
    dropped: dict[str, list[int]] = {"duplicate": [], "shorter than min_tokens": [], "longer than max_tokens": []}
    kept = []
    for document, (size, content) in enumerate(zip(sizes, digests, strict=True)):
        if content in seen:
            dropped["duplicate"].append(document)
            continue
        seen.add(content)
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
    with bar("making passkeys", None) as advance:
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
