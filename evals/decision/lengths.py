"""Effective lengths with bounds: how far an arm reaches at least, and at most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ropescale.evals.anytime import Tally, exceeds, falls_short, location
from ropescale.evals.decision.comparison import COMPARISONS, ERROR
from ropescale.evals.decision.measures import Evidence
from ropescale.evals.statistics import PERPLEXITY_TOLERANCE, RULER_THRESHOLD

SIDES = 2  # at least, at most


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of an effective length, in tokens; 0 is below the shortest length that was tested."""

    low: int
    high: int | None  # None where no length is shown to be too long

    @property
    def told(self) -> bool:
        """Whether the length is known."""
        return self.low == self.high


def error_of(arms: int) -> float:
    """The share of the error that a bound has, of both measures and sides for all arms."""
    return (ERROR - COMPARISONS) / (2 * SIDES * max(arms, 1))


def found_to(evidence: Evidence, error: float) -> Bounds | None:
    """How far an arm retrieves; None where no prompts were asked.

    Lengths are gone through from the shortest, and what is claimed ends at the first that cannot be told, so that
    claiming several costs no more than claiming one. That a length is too long may be claimed of any, so each has its
    share of the error.
    """
    tallies = {n: Tally.of(rounds, evidence.weights[n]) for n, rounds in sorted(evidence.by_length.items())}
    if not tallies:
        return None
    each = error / len(tallies)
    reached = {n: exceeds(tally, RULER_THRESHOLD, error) for n, tally in tallies.items()}
    missed = {n: falls_short(tally, RULER_THRESHOLD, each) for n, tally in tallies.items()}
    return _bounds(reached, missed)


def read_to(evidence: Evidence, error: float) -> Bounds | None:
    """How far an arm keeps its perplexity; None where none was measured."""
    if not evidence.losses:
        return None
    limit = math.log(PERPLEXITY_TOLERANCE)
    losses = {n: [*windows.values()] for n, windows in sorted(evidence.losses.items())}
    reached = {n: location(values, error).high <= limit for n, values in losses.items()}
    missed = {n: location(values, error / len(losses)).low > limit for n, values in losses.items()}
    return _bounds(reached, missed)


def _bounds(reached: Mapping[int, bool], missed: Mapping[int, bool]) -> Bounds:
    """The last length before the first that is not shown to be reached, and before the first that is shown missed."""
    low, before = 0, 0
    for length, is_reached in reached.items():
        if not is_reached:
            break
        low = length
    for length, is_missed in missed.items():
        if is_missed:
            return Bounds(low=min(low, before), high=before)
        before = length
    return Bounds(low=low, high=None)
