"""What became of the documents: read, dropped and why, trained on, held out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from rich.table import Table


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
    pieces: dict[str, int]  # pieces of documents in the rows, likewise

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The account that `to_dict` gave."""
        sources = tuple(
            SourceAccount(
                source=source["source"],
                read=Count(**source["read"]),
                dropped={reason: Count(**count) for reason, count in source["dropped"].items()},
                trained=Count(**source["trained"]),
                held_out=Count(**source["held_out"]),
            )
            for source in values["sources"]
        )
        return cls(**{**values, "sources": sources})

    def table(self) -> Table:
        """For a terminal: a line per source and fate, with documents, tokens and the share of training."""
        table = Table("source", "", title=f"data, in rows of {self.length:,} tokens")
        for heading in ("documents", "tokens", "of training"):
            table.add_column(heading, justify="right")
        total = sum(source.trained.tokens for source in self.sources) or 1
        for source in self.sources:
            fates = [("trained", source.trained), ("held out", source.held_out), *sorted(source.dropped.items())]
            table.add_row(source.source, "read", f"{source.read.documents:,}", f"{source.read.tokens:,}", "")
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
