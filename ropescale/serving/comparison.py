"""How far what a server says is from what a reading computes, and which reading it is; pure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Nats, in the mean over all prompts: the most that counts as rounding of weights, caches and sums. The embedded model
# comes to 7e-8 in float32, 2e-5 in bfloat16 and 1.4e-4 in 8 bits; weights in 4 bits bring more.
TOLERANCE = 0.1
MARGIN = 3.0  # so many times as far off is every other reading, if one is named
ERRORS = 3.0  # standard errors of a mean difference that is no accident
FLOOR = 1e-5  # nats: rounding of float32, below which nothing is told apart
UNEVEN, SEEN = 20.0, 1e-3  # rounding grows with length, but not so many times from one to another where it is so large
LEAST = 1e-6  # the least probability of all tokens together that are not given

Row = Mapping[int, float]  # log-probabilities of some tokens


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a server is from one reading."""

    name: str
    says: str
    mean: float  # nats, over all prompts
    by_length: dict[int, float]  # the same over the prompts of each length in tokens


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Which reading a server is nearest to, and what else it may be; readings by their places."""

    first: int
    alike: tuple[int, ...]  # not told apart from the first, and differing from it by less than the server does
    rivals: tuple[int, ...]  # not told apart from it, though they differ by more
    within: bool  # whether what is left is rounding, at every length alike


def divergence(said: Row, expected: Row) -> float:
    """Kullback-Leibler divergence from one row of log-probabilities to another, in nats.

    Over the tokens that both give, and all others taken together.
    """
    both = [(value, expected[token]) for token, value in said.items() if token in expected]
    left = [max(1 - sum(math.exp(pair[place]) for pair in both), LEAST) for place in (0, 1)]
    total = sum(math.exp(one) * (one - other) for one, other in both) + left[0] * math.log(left[0] / left[1])
    return max(total, 0.0) if math.isfinite(total) else math.inf


def nearest(
    distances: Sequence[Distance], every: Sequence[Sequence[float]], rows: Sequence[Sequence[Row]], tolerance: float
) -> Nearest:
    """The reading that is nearest to what a server says.

    Another one is told from it if it is farther off by so many times, or at so many prompts that it is no accident:
    rounding moves the distances from both alike.

    Args:
        distances: from each reading.
        every: the same after each prompt.
        rows: what each reading computes after each prompt.
        tolerance: nats that count as rounding.
    """
    first, *others = sorted(range(len(distances)), key=lambda place: distances[place].mean)
    near = distances[first].mean
    alike: list[int] = []
    rivals: list[int] = []
    for place in others:
        if distances[place].mean > MARGIN * near + FLOOR or _farther(every[first], every[place]):
            continue
        apart = [divergence(one, other) for one, other in zip(rows[first], rows[place], strict=True)]
        (alike if sum(apart) / len(apart) <= max(near, FLOOR) else rivals).append(place)
    by_length = distances[first].by_length.values()
    return Nearest(
        first=first,
        alike=tuple(alike),
        rivals=tuple(rivals),
        within=near <= tolerance and max(by_length) <= max(UNEVEN * min(by_length), SEEN),
    )


def _farther(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the second distances are larger than the first by what is no accident and no rounding of float32."""
    more = [second - first for first, second in zip(one, other, strict=True)]
    if len(more) < 2 or not all(map(math.isfinite, more)):
        return False
    return statistics.mean(more) > max(FLOOR, ERRORS * statistics.stdev(more) / math.sqrt(len(more)))
