"""The tables that all forms share, as text that none of them has escaped."""

from __future__ import annotations

from dataclasses import dataclass

from ropescale.evals.paired.differences import Differences, Row
from ropescale.evals.paired.pairing import Arms, unlike
from ropescale.evals.report.wording import (
    band_text,
    estimate_text,
    gain_interval_text,
    gain_text,
    length_text,
    perplexity_text,
    rate_text,
    ratio_interval_text,
    ratio_text,
)
from ropescale.pages.elements import shown

COLUMNS = ("task", "tokens", "A", "B", "B against A", "compared")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table: what it is of, and its values."""

    task: str
    at: str  # length, or band of positions
    before: str
    after: str
    change: str  # with its interval
    count: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `COLUMNS`."""
        return self.task, self.at, self.before, self.after, self.change, self.count


def lines(made: Differences, arms: Arms) -> list[Line]:
    """Every figure of two arms."""
    return [_line(row) for row in made.of(arms)]


def settings(made: Differences) -> list[tuple[str, str, str]]:
    """What the two folders differ in: its name, as A has it, as B has it."""
    found = unlike(*made.pairing.folders)
    return [(shown(name, 60), shown(one, 300), shown(other, 300)) for name, (one, other) in found.items()]


def _line(row: Row) -> Line:
    at = "" if row.length is None else band_text(row.band) if row.band else length_text(row.length)
    if row.of_losses:
        change = estimate_text(ratio_text(row.change), ratio_interval_text(row.change))
        values = perplexity_text(row.before), perplexity_text(row.after)
    else:
        change = estimate_text(gain_text(row.change), gain_interval_text(row.change))
        values = rate_text(row.before), rate_text(row.after)
    noun = "windows" if row.of_losses else "prompts"
    return Line(
        task=shown(row.task.name, 40),
        at=at,
        before=values[0],
        after=values[1],
        change=change,
        count=f"{row.count:,} {noun if row.count != 1 else noun[:-1]}",
    )
