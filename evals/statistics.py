"""Statistics of an evaluation: intervals, paired comparisons, effective lengths; pure, knows no files and no model.

Intervals are of 95 %. Every arm of an evaluation answers the same samples, so comparisons are paired: what is
resampled is the difference on a sample, never the two arms apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ropescale.errors import InvalidArgumentError

RULER_THRESHOLD = 0.856  # Llama-2-7B at 4,096 tokens, the yardstick of RULER (arXiv 2404.06654, section 4)
PERPLEXITY_TOLERANCE = 1.25  # times the unpatched perplexity inside the original length
RESAMPLES = 2000
TAILS = (2.5, 97.5)  # percentiles of the bootstrap that bound an interval
LARGEST_EXPONENT = 700.0  # exp of more is no float

Array = np.ndarray[Any, np.dtype[Any]]


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(found: float, asked: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval (1927) of a share, as shares from 0 to 1.

    `found` may be a fraction where a sample can be right in part: its variance is then at most that of right or
    wrong, so the interval is too wide rather than too narrow.

    Raises:
        InvalidArgumentError: nothing was asked for, or `found` is not between 0 and `asked`.
    """
    if asked < 1 or not 0 <= found <= asked:
        raise InvalidArgumentError(
            f"wilson: found must be from 0 to asked, and asked at least 1, got found {found!r} of {asked!r}; "
            f"leave out what nobody was asked for"
        )
    share, square = found / asked, z * z / asked
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / asked + square / (4 * asked)) / (1 + square)
    # at the ends the bounds are 0 and 1 exactly, but for rounding
    return (0.0 if found == 0 else max(0.0, middle - half), 1.0 if found == asked else min(1.0, middle + half))


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of `after` - `before` over samples, with the percentile bootstrap's interval.

    Where every sample changed alike the interval has no width, whatever the number of samples.

    Raises:
        InvalidArgumentError: no samples, or not as many on both sides.
    """
    if len(before) != len(after) or not before:
        raise InvalidArgumentError(
            f"paired_bootstrap: before and after must hold a score for each of the same samples, got {len(before)} "
            f"and {len(after)}; compare arms that ran on the same samples"
        )
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    # drawing samples with replacement is drawing how often each distinct difference comes up
    values, counts = np.unique(differences, return_counts=True)
    size = len(differences)
    drawn = np.random.default_rng(seed).multinomial(size, counts / size, size=resamples)
    return _estimate(float(differences.mean()), drawn @ values / size)


def perplexity_ratio(
    before: Sequence[float],
    after: Sequence[float],
    tokens: Sequence[int],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    blocks: int | None = None,
) -> Estimate:
    """Token-weighted perplexity after / before, with the bootstrap's interval over blocks of the same text.

    Over a single text there is no interval: what is resampled is then no sample of texts.

    Arguments:
        before: [blocks] sums of losses in nats.
        after: [blocks] sums of losses in nats over the same tokens.
        tokens: [blocks] how many tokens each sum is of.
        seed: of the resampling.
        resamples: how often the blocks are drawn.
        blocks: of how many texts they are; of one each if not given.

    Raises:
        InvalidArgumentError: no tokens, or not as many blocks on each side.
    """
    if not len(before) == len(after) == len(tokens) or sum(tokens) < 1:
        raise InvalidArgumentError(
            f"perplexity_ratio: before, after and tokens must be of the same blocks and hold tokens, got "
            f"{len(before)}, {len(after)} and {len(tokens)} blocks of {sum(tokens)} tokens; "
            f"compare arms that ran on the same texts"
        )
    weights = np.asarray(tokens, dtype=np.float64)
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if (len(weights) if blocks is None else blocks) < 2:
        return Estimate(_exponential(float(differences.sum() / weights.sum())), math.nan, math.nan)
    size = len(weights)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = (drawn @ differences) / (drawn @ weights)
    exponents = np.minimum(spread[np.isfinite(spread)], LARGEST_EXPONENT)
    return _estimate(_exponential(float(differences.sum() / weights.sum())), np.exp(exponents))


def perplexity(nats: float, tokens: int) -> float:
    """Token-weighted perplexity of a sum of losses; nan where nothing was scored."""
    return _exponential(nats / tokens) if tokens else math.nan


def effective_length(scores: Mapping[int, float], threshold: float = RULER_THRESHOLD) -> int:
    """RULER's effective length: the largest length whose score, and that of all shorter ones, reaches a threshold.

    `scores` maps lengths in tokens to averages from 0 to 1. 0 where the shortest length misses already.
    """
    reached = 0
    for length, score in sorted(scores.items()):
        if not score >= threshold:
            break
        reached = length
    return reached


def kept_length(perplexities: Mapping[int, float], limit: float) -> int:
    """The largest length up to which perplexity, there and at all shorter ones, stays at or below a limit.

    `perplexities` maps the end of a band of positions, or a context length, in tokens, to its perplexity. 0 where
    the first is above the limit already, or is not a number.
    """
    return effective_length({length: -value for length, value in perplexities.items()}, -limit)


def band_edges(original_length: int, reach: int) -> list[int]:
    """Where bands of positions end: L, 2L, 4L ... up to `reach`, or quarters of L below 2L."""
    if reach <= original_length:
        return [reach]
    if reach < 2 * original_length:
        steps = [original_length * i // 4 for i in range(4, 8)]
    else:
        steps = [original_length * 2**i for i in range(40)]
    return [*(edge for edge in steps if edge < reach), reach]


def _estimate(value: float, resampled: Array) -> Estimate:
    if not resampled.size or not np.isfinite(resampled).all():
        return Estimate(value, math.nan, math.nan)
    low, high = np.percentile(resampled, TAILS)
    return Estimate(value, float(low), float(high))


def _exponential(nats: float) -> float:
    return math.exp(min(nats, LARGEST_EXPONENT))
