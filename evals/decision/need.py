"""What would tell two arms apart, at the rates observed so far, and what that costs: estimates of no certainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ropescale.evals.anytime import observations_until, rounds_until
from ropescale.evals.decision.comparison import MARGINS, READ, Comparison
from ropescale.evals.results import Arm


@dataclass(frozen=True, kw_only=True)
class Need:
    """How much more is needed to tell two arms apart; None where no number of them would."""

    arm: Arm
    against: Arm
    rounds: int | None  # more prompts of each length and depth
    prompts: int | None  # more prompts in all, of both arms
    rounds_minutes: float | None  # that they take; None where no timings say it
    windows: int | None  # more windows of text
    windows_minutes: float | None


def need_of(comparison: Comparison) -> Need:
    """What would tell these two apart."""
    one, other = comparison.one, comparison.other
    rounds = windows = None
    if comparison.tally.counts:
        every = rounds_until(comparison.tally, 0.0, comparison.error / 2, -1.0, 1.0)
        rounds = None if every is None else max(every - int(comparison.tally.rounds), 1)
    read = comparison.observed[1]
    if comparison.windows and abs(read) > MARGINS[READ]:  # what differs by less is never told
        all_windows = observations_until(comparison.windows, math.copysign(MARGINS[READ], read), comparison.error)
        windows = None if all_windows is None else max(all_windows - len(comparison.windows), 1)
    strata = one.found.shape[1]
    return Need(
        arm=one.arm,
        against=other.arm,
        rounds=rounds,
        prompts=None if rounds is None else 2 * rounds * strata,
        rounds_minutes=_minutes(rounds, one.round_seconds + other.round_seconds),
        windows=windows,
        windows_minutes=_minutes(windows, one.window_seconds + other.window_seconds),
    )


def _minutes(times: int | None, seconds: float) -> float | None:
    return None if times is None or not math.isfinite(seconds) else times * seconds / 60
