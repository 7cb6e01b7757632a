"""Intervals that hold whenever one stops looking: read after every round, with an end at any of them.

Such an interval is called a confidence sequence: with probability 1 - `error` it holds the truth after every round at
once. What a fixed number of samples would allow is narrower, and wrong where somebody looked and went on. Pure; knows
no files and no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ropescale.errors import InvalidArgumentError
from ropescale.evals.statistics import Estimate

# Bets as shares of the largest that cannot lose all: small ones for small differences, large ones for clear ones
BETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
PRIOR_WEIGHT = 0.01  # windows that the prior of an effect counts as; few, so that four windows give an interval
MOST_ROUNDS = 100_000  # further than that nobody goes
PRECISION = 1e-6  # of a bound, as a share of the range

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How often each score came up in rounds of prompts.

    A round asks every stratum (a task at a length and a depth) once. What is estimated is the average over the strata
    of their mean scores, by the strata's weights.
    """

    scores: tuple[float, ...]
    weights: tuple[float, ...]  # of the stratum that gave the score, averaging 1 over a round
    counts: tuple[float, ...]  # how often that score came up there
    rounds: float

    @classmethod
    def of(cls, scores: Any, weights: Sequence[float] | None = None) -> Tally:
        """The tally of scores [rounds, strata]; all strata count alike where no weights [strata] are given.

        Raises:
            InvalidArgumentError: not one finite score for each stratum in each round, or no positive weight for each.
        """
        table = np.asarray(scores, dtype=np.float64)
        if table.ndim != 2 or not np.isfinite(table).all():
            raise InvalidArgumentError(
                f"tally: scores must be finite, of [rounds, strata], got shape {table.shape}; leave out rounds that "
                f"are not whole"
            )
        share = np.ones(table.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
        if share.shape != (table.shape[1],) or not (share > 0).all():
            raise InvalidArgumentError(
                f"tally: weights must be positive, one for each of {table.shape[1]} strata, got {weights!r}; leave "
                f"out a stratum that does not count"
            )
        share = share / share.mean() if len(share) else share
        alike = {weight: table[:, share == weight] for weight in sorted({*share.tolist()})}
        counted = [(weight, *np.unique(columns, return_counts=True)) for weight, columns in alike.items()]
        return cls(
            scores=tuple(score for _, found, _ in counted for score in found.tolist()),
            weights=tuple(weight for weight, found, _ in counted for _ in found),
            counts=tuple(float(count) for _, _, counts in counted for count in counts),
            rounds=float(len(table)),
        )

    @property
    def mean(self) -> float:
        """The weighted average; nan of no rounds."""
        weight = sum(w * n for w, n in zip(self.weights, self.counts, strict=True))
        total = sum(x * w * n for x, w, n in zip(self.scores, self.weights, self.counts, strict=True))
        return total / weight if weight else math.nan

    def after(self, rounds: float) -> Tally:
        """What so many rounds would give at the rates that were observed."""
        counts = tuple(count * rounds / self.rounds for count in self.counts)
        return Tally(scores=self.scores, weights=self.weights, counts=counts, rounds=rounds)


def exceeds(tally: Tally, mean: float, error: float, low: float = 0.0) -> bool:
    """Whether the mean score is shown to be more than `mean`: then `at_least` is no less than that."""
    # whoever loses on average wins no capital at any stake
    return tally.mean > mean and _log_capital(tally, mean, low) >= -math.log(error)


def falls_short(tally: Tally, mean: float, error: float, high: float = 1.0) -> bool:
    """Whether the mean score is shown to be less than `mean`: then `at_most` is no more than that."""
    return exceeds(_mirrored(tally), -mean, error, -high)


@lru_cache(maxsize=2**16)
def at_least(tally: Tally, error: float, low: float = 0.0, high: float = 1.0) -> float:
    """The mean score is at least this, after every round at once but for a probability of `error`.

    Betting (Waudby-Smith and Ramdas 2024, arXiv 2010.09686): whoever holds that the mean is at most m must accept a
    bet on x - m at any stake L that cannot lose more than there is. With w the weights of the strata, the capital
    after a round is multiplied by the product over strata of 1 + L w (x - m). Strata are independent, and L stays
    the same throughout, so this product has the expectation of prod(1 + L w (mu - m)), which is at most
    (1 + L mean(w (mu - m)))^strata, since a geometric mean is at most the arithmetic one. That is at most 1 where the
    weighted average of the strata's means mu is at most m, however unlike they are. By Ville's inequality the
    capital, here the average over `BETS`, ever reaches 1 / `error` with a probability of at most `error`; the bound
    is the largest m that it has refuted. A score of a prompt is at least `low` and at most `high`; for differences
    between two arms on the same prompts, -1 and 1: what both answer alike changes little, as in McNemar's test.
    """
    return _bound(lambda mean: exceeds(tally, mean, error, low), low, high)


def at_most(tally: Tally, error: float, low: float = 0.0, high: float = 1.0) -> float:
    """The mean score is at most this, as `at_least` says it from the other side."""
    return -at_least(_mirrored(tally), error, -high, -low)


def bounded_mean(tally: Tally, error: float, low: float = 0.0, high: float = 1.0) -> Estimate:
    """The mean score with an interval that holds after every round at once, but for a probability of `error`."""
    return Estimate(tally.mean, at_least(tally, error / 2, low, high), at_most(tally, error / 2, low, high))


def rounds_until(tally: Tally, mean: float, error: float, low: float = 0.0, high: float = 1.0) -> int | None:
    """After how many rounds in all, at the rates observed so far, a bound would leave `mean` outside.

    None where the observed mean is `mean`, or more than `MOST_ROUNDS` were needed. An estimate, of no certainty.
    """
    if not tally.rounds or not abs(tally.mean - mean) > 0:
        return None
    # the capital against a mean below the observed one grows, that against one above it by the mirrored scores
    against, least, level = (tally, low, mean) if tally.mean > mean else (_mirrored(tally), -high, -mean)

    return _first(lambda rounds: exceeds(against.after(rounds), level, error, least))


def location(observations: Sequence[float] | Array, error: float) -> Estimate:
    """The mean of observations without bounds, with an interval that holds after each of them at once.

    It is the scale-invariant mixture sequence (Wang and Ramdas 2023, arXiv 2310.03722; the Bayes factor of Gönen et
    al. 2005): the effect, in standard deviations, has the prior N(0, 1 / `PRIOR_WEIGHT`), the deviation the
    right-Haar one. Observations count as independent draws of one normal distribution. For losses one observation is
    one window's mean nats per token, or the difference of two arms' on the same window; several windows of one
    document count as independent too, which they are not quite: where documents differ much from one another, an
    interval over few documents is too narrow for texts of other documents.

    The interval is the whole line where the observations are too few, or not all finite.
    """
    values = [float(one) for one in observations]
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return Estimate(sum(values) / n if n else math.nan, -math.inf, math.inf)
    mean, deviation = _mean_and_deviation(values)
    half = _errors_wide(n, error) * deviation / math.sqrt(n)
    # several equal observations of too few still say nothing
    return Estimate(mean, mean - half, mean + half) if math.isfinite(half) else Estimate(mean, -math.inf, math.inf)


def observations_until(observations: Sequence[float] | Array, mean: float, error: float) -> int | None:
    """After how many observations in all, of the mean and spread observed so far, `location` would exclude a mean.

    None where that cannot be told from fewer than two, the observed mean is `mean`, or more than `MOST_ROUNDS` were
    needed. An estimate, of no certainty.
    """
    values = [float(one) for one in observations]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    observed, deviation = _mean_and_deviation(values)
    effect = abs(observed - mean)
    return _first(lambda n: n > 1 and _errors_wide(n, error) * deviation < effect * math.sqrt(n)) if effect else None


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Of two or more."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _errors_wide(n: int, error: float) -> float:
    """Half the width of `location`, in standard errors; infinite where n observations are too few."""
    root = math.exp(2 / n * (0.5 * math.log1p(n / PRIOR_WEIGHT) - math.log(error)))
    rest = 1 - root * PRIOR_WEIGHT / (n + PRIOR_WEIGHT)
    return math.sqrt((n - 1) * (root - 1) / rest) if rest > 0 else math.inf


def _mirrored(tally: Tally) -> Tally:
    """The same scores with the opposite sign."""
    return Tally(
        scores=tuple(-score for score in tally.scores),
        weights=tally.weights,
        counts=tally.counts,
        rounds=tally.rounds,
    )


def _log_capital(tally: Tally, mean: float, low: float) -> float:
    """The logarithm of the capital against a mean above `low`.

    A stake is a share of the largest that a score of `low` in the heaviest stratum cannot ruin; written so, the
    capital falls as the mean rises.
    """
    heaviest = max(tally.weights, default=1.0)
    gains = [
        weight / heaviest * ((score - low) / (mean - low) - 1)
        for score, weight in zip(tally.scores, tally.weights, strict=True)
    ]
    growths = [
        sum(count * math.log1p(bet * gain) for count, gain in zip(tally.counts, gains, strict=True)) for bet in BETS
    ]
    largest = max(growths)
    return largest + math.log(sum(math.exp(growth - largest) for growth in growths) / len(BETS))


def _bound(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Up to where in a range something holds that holds below wherever it holds; the lower end where nowhere."""
    if holds(high):
        return high
    start, end = low, high
    while end - start > PRECISION * (high - low):
        middle = (start + end) / 2
        start, end = (middle, end) if holds(middle) else (start, middle)
    return start


def _first(holds: Callable[[int], bool]) -> int | None:
    """The first count for which something holds that stays true; None beyond `MOST_ROUNDS`."""
    after = 1
    while not holds(after):
        if after > MOST_ROUNDS:
            return None
        after *= 2
    before = after // 2
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (before, middle) if holds(middle) else (middle, after)
    return after
