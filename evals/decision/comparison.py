"""Two arms side by side, on the prompts and windows that both had, and which of them that shows to be better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ropescale.evals.anytime import Tally, bounded_mean, exceeds, falls_short, location
from ropescale.evals.decision.measures import Evidence
from ropescale.evals.results import Arm
from ropescale.evals.statistics import Estimate

FIND, READ = "find", "read"
# What makes no difference to anybody: 5 points of what is found, 2 % of perplexity
MARGINS = {FIND: 0.05, READ: math.log(1.02)}
ERROR = 0.05  # of all that a verdict claims together
COMPARISONS = ERROR / 2  # for comparisons between arms; the other half is for effective lengths


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better one arm is than another by a measure, with an interval that holds among all comparisons."""

    measure: str  # `FIND`: a share of prompts; `READ`: nats per token, counted so that more is better
    arm: Arm
    against: Arm
    estimate: Estimate
    compared: int  # prompts, or windows

    @property
    def margin(self) -> float:
        """What makes no difference by this measure."""
        return MARGINS[self.measure]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """One arm against another by both measures."""

    one: Evidence
    other: Evidence
    error: float  # of each of its two intervals
    back: Comparison | None = None  # the same from the other side, where that was made

    @cached_property
    def tally(self) -> Tally:
        """The differences in score, prompt by prompt."""
        whole = min(len(self.one.found), len(self.other.found))
        return Tally.of(self.one.found[:whole] - self.other.found[:whole])

    @cached_property
    def windows(self) -> list[float]:
        """The differences in nats per token, window by window, counted so that more is better."""
        return [self.other.read[key] - nats for key, nats in self.one.read.items() if key in self.other.read]

    @cached_property
    def find(self) -> Difference | None:
        """How much more is found; None where no prompts were asked."""
        if not self.tally.counts:
            return None
        estimate = bounded_mean(self.tally, self.error, -1.0, 1.0)
        return self._difference(FIND, estimate, round(sum(self.tally.counts)))

    @cached_property
    def read(self) -> Difference | None:
        """How much better text is read; None where none was."""
        return self._difference(READ, location(self.windows, self.error), len(self.windows)) if self.windows else None

    def _difference(self, measure: str, estimate: Estimate, compared: int) -> Difference:
        return Difference(
            measure=measure, arm=self.one.arm, against=self.other.arm, estimate=estimate, compared=compared
        )

    @property
    def known(self) -> list[Difference]:
        """What was measured."""
        return [one for one in (self.find, self.read) if one is not None]

    @cached_property
    def signs(self) -> dict[str, int]:
        """Measure -> which way the difference is told to go; 0 where neither way, in reading by more than the margin.

        Windows tell perplexities apart that differ by a thousandth, for which nobody gives up a prompt found or a
        cheaper arm, so less than the margin counts for nothing in reading.
        """
        if self.back is not None:
            return {measure: -told for measure, told in self.back.signs.items()}
        error, margin = self.error / 2, MARGINS[READ]
        read = location(self.windows, self.error)
        return {
            FIND: exceeds(self.tally, 0.0, error, -1.0) - falls_short(self.tally, 0.0, error),
            READ: (read.low > margin) - (read.high < -margin),
        }

    @cached_property
    def better_by(self) -> str:
        """The measure by which the first beats the second; empty where it does not.

        It finds more and does not read worse by more than the margin; or what it finds cannot be told apart, and it
        reads better by more than the margin.
        """
        found, read = self.signs[FIND], self.signs[READ]
        if found > 0 and read >= 0:
            return FIND
        return READ if found == 0 and read > 0 else ""

    @property
    def measures(self) -> list[str]:
        """By which the two were measured."""
        return [*([FIND] if self.tally.counts else []), *([READ] if self.windows else [])]

    @cached_property
    def observed(self) -> tuple[float, float]:
        """How much more the first was seen to find, and how much better to read; of no certainty."""
        read = math.fsum(self.windows) / len(self.windows) if self.windows else 0.0
        return (self.tally.mean if self.tally.counts else 0.0, read if math.isfinite(read) else -math.inf)

    @property
    def opposed(self) -> bool:
        """Whether one of the two finds more and the other reads better."""
        return self.signs[FIND] * self.signs[READ] < 0

    @cached_property
    def negligible(self) -> bool:
        """Whether the first is shown to be better by no more than the margins, by all that was measured."""
        finds, reads = bool(self.tally.counts), bool(self.windows)
        return (
            (finds or reads)
            and (not finds or falls_short(self.tally, MARGINS[FIND], self.error / 2))
            and (not reads or location(self.windows, self.error).high <= MARGINS[READ])
        )

    def by(self, measure: str) -> Difference | None:
        """The difference by a measure."""
        return self.find if measure == FIND else self.read


class Comparisons:
    """All pairs of arms, each of whose intervals has its share of the error."""

    def __init__(self, evidence: Sequence[Evidence], entrants: int | None = None):
        """`entrants` is how many arms have taken part in all, where some are no longer among these."""
        self.evidence = {one.arm: one for one in evidence}
        taking_part = max(entrants or 0, len(self.evidence), 2)
        self.error = COMPARISONS / (math.comb(taking_part, 2) * len(MARGINS))
        self._made: dict[tuple[Arm, Arm], Comparison] = {}

    def of(self, one: Arm, other: Arm) -> Comparison:
        """One against another."""
        if (one, other) not in self._made:
            ours, theirs, back = self.evidence[one], self.evidence[other], self._made.get((other, one))
            self._made[one, other] = Comparison(one=ours, other=theirs, error=self.error, back=back)
        return self._made[one, other]
