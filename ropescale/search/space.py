"""What a search chooses among: vectors that an optimiser draws, and the methods that they stand for. Pure.

Every vector stands for a method that keeps the published constraints: stretches that do not fall from the fastest pair
to the slowest, none below 1 (LongRoPE, arXiv:2402.13753, section 3.2), none above twice the factor, and in the space
"critical" none below the factor from a critical pair on, with the stretches of another theta before it (LongRoPE2,
arXiv:2502.20082, section 3.2 and algorithm 1).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ropescale.checks import did_you_mean
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import Geometry
from ropescale.methods import FixedMethod, LongRoPE, Method, get_method
from ropescale.spectrum import base_inv_freq

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

WIDEST = 2.0  # times the factor: the largest stretch; LongRoPE2's, and no less than LongRoPE's 1 + factor
ATTENTION = (0.7, 2.0)  # bounds of the attention factor
DIGITS = 6  # after the point, of what a record holds
KEPT_TURNS = 10  # LongRoPE2 looks for the critical pair from the first with fewer turns over the original length


class Space(ABC):
    """Vectors of float64, and the method that each stands for; any vector stands for one."""

    @property
    @abstractmethod
    def scales(self) -> Vector:
        """[dimensions]: how much of each entry is one step, so that steps of all entries matter alike."""

    @abstractmethod
    def method(self, vector: Vector) -> Method:
        """The method that a vector stands for."""

    @abstractmethod
    def vector(self, method: Method) -> Vector:
        """The vector that is nearest to a method; where a search begins."""

    @property
    def starts(self) -> bool:
        """Whether a search begins at the best formula of the registry."""
        return True


@dataclass(frozen=True)
class Pairs(Space):
    """A stretch for each pair, from 1 up, no pair stretched less than a faster one; and the attention factor.

    A vector holds the logarithms of the stretches, each raised to the largest before it, and the logarithm of the
    attention factor.
    """

    geometry: Geometry
    factor: float

    @property
    def scales(self) -> Vector:
        """[dimensions], as of every space."""
        return np.ones(self.geometry.pairs + 1)

    def method(self, vector: Vector) -> Method:
        """The method that a vector stands for."""
        logarithms = np.maximum.accumulate(vector[:-1].clip(0, math.log(WIDEST * self.factor)))
        return _longrope(self.factor, logarithms, vector[-1])

    def vector(self, method: Method) -> Vector:
        """The vector that is nearest to a method."""
        return np.append(_logarithms(method, self.geometry), _attention(method, self.geometry))


@dataclass(frozen=True)
class Critical(Space):
    """LongRoPE2's: from a critical pair on at least the factor, before it the stretches of another theta.

    A vector holds where the critical pair lies between the first with fewer than ten turns and the theoretical one (0
    to 1), the logarithms by which the slower pairs exceed the factor, each raised to the largest before it, and the
    logarithm of the attention factor.
    """

    geometry: Geometry
    factor: float

    @property
    def scales(self) -> Vector:
        """[dimensions], as of every space."""
        return np.ones(self.geometry.pairs - self.between[0] + 2)

    def method(self, vector: Vector) -> Method:
        """The method that a vector stands for."""
        first, last = self.between
        critical = round(first + min(max(float(vector[0]), 0.0), 1.0) * (last - first))
        over = np.maximum.accumulate(vector[1:-1].clip(0, math.log(WIDEST)))
        slower = math.log(self.factor) + over[critical - first :]
        faster = slower[0] * np.arange(critical) / max(critical, 1)
        return _longrope(self.factor, np.concatenate((faster, slower)), vector[-1])

    def vector(self, method: Method) -> Vector:
        """The vector that is nearest to a method."""
        over = _logarithms(method, self.geometry)[self.between[0] :] - math.log(self.factor)
        return np.concatenate(([0.5], over.clip(0, math.log(WIDEST)), [_attention(method, self.geometry)]))

    @property
    def between(self) -> tuple[int, int]:
        """The first and the last pair that may be the critical one."""
        turns = (base_inv_freq(self.geometry) * self.geometry.original_length / (2 * math.pi)).tolist()
        last = next((pair for pair, count in enumerate(turns) if count < 1), self.geometry.pairs - 1)
        return min(next((pair for pair, count in enumerate(turns) if count < KEPT_TURNS), last), last), last


@dataclass(frozen=True)
class Knobs(Space):
    """A few knobs of one method: each a number between two others, or one of several values.

    A number is searched by its logarithm where both bounds are above 0, and is whole where both are. Of a knob that
    is a list each entry has a range of its own: "points.0", "points.1" and so on. Entries of vectors run from 0 to 1,
    and come back from there where they are beyond.
    """

    geometry: Geometry
    factor: float
    name: str
    ranges: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        known = {item.name for item in fields(get_method(self.name))} - {"factor"}
        for knob, values in self.ranges.items():
            if knob.partition(".")[0] not in known:
                there = f"available: {', '.join(sorted(known))}"
                raise InvalidArgumentError(f"ranges: unknown knob {knob!r}; {did_you_mean(knob, known, then=there)}")
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise InvalidArgumentError(
                    f"ranges: {knob} must be two numbers, or a list of values to choose from, got "
                    f"{shortened(values)}; write it as in {{{knob!r}: [1, 64]}}"
                )
            if _between(values) and not -math.inf < values[0] < values[1] < math.inf:
                raise InvalidArgumentError(
                    f"ranges: {knob} must lie between two finite numbers, the lower first, got {shortened(values)}; "
                    f"write it as in {{{knob!r}: [1, 64]}}"
                )
        for name in {knob.partition(".")[0] for knob in self.ranges if "." in knob}:
            given = [knob for knob in self.ranges if knob.partition(".")[0] == name]
            if given != [f"{name}.{number}" for number in range(len(given))]:
                raise InvalidArgumentError(
                    f"ranges: entries of {name} must be numbered from 0 on and in order, got {', '.join(given)}; "
                    f"write them as in {{'{name}.0': [1, 8], '{name}.1': [1, 8]}}"
                )
        if not self.free:
            raise InvalidArgumentError(
                f"ranges: must leave something to choose, got {shortened(dict(self.ranges))}; give a knob two numbers "
                f"or several values"
            )
        for ends in itertools.product((0.0, 1.0), repeat=len(self.free)):
            self.method(np.array(ends))  # which refuses what the method does

    @property
    def free(self) -> list[str]:
        """The knobs with more than one value."""
        return [knob for knob, values in self.ranges.items() if len(values) > 1]

    @property
    def scales(self) -> Vector:
        """[dimensions], as of every space."""
        # the optimiser needs two dimensions: the second of a single knob is read by nobody
        return np.full(max(len(self.free), 2), 2.5)

    @property
    def starts(self) -> bool:
        """Never: its own middle is where it begins."""
        return False

    def method(self, vector: Vector) -> Method:
        """The method that a vector stands for."""
        places = iter(vector)
        knobs: dict[str, Any] = {}
        for knob, values in self.ranges.items():
            value = _value(values, float(next(places))) if len(values) > 1 else values[0]
            name, entry, _ = knob.partition(".")
            knobs[name] = [*knobs.get(name, ()), value] if entry else value
        return get_method(self.name)(factor=self.factor, **knobs)

    def vector(self, method: Method) -> Vector:
        """The vector that is nearest to a method."""
        return np.full(len(self.scales), 0.5)


def _between(values: Sequence[Any]) -> bool:
    """Whether these are two bounds of a number."""
    return len(values) == 2 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def _value(values: Sequence[Any], place: float) -> Any:
    """The value at a place from 0 to 1, or that from which it comes back."""
    place = abs((place + 1) % 2 - 1)
    if not _between(values):
        return values[min(int(place * len(values)), len(values) - 1)]
    low, high = values
    found = low * (high / low) ** place if low > 0 else low + (high - low) * place
    return min(max(round(found) if isinstance(low, int) and isinstance(high, int) else found, low), high)


# Knobs whose values a search knows where to look for
KNOWN: Mapping[str, Callable[[Geometry, float], Sequence[Any]]] = MappingProxyType(
    {
        "theta": lambda geometry, factor: (geometry.theta, geometry.theta * (4 * factor) ** 1.5),
        "attention_factor": lambda geometry, factor: (1.0, 1 + 0.3 * math.log(factor)),
        "alpha": lambda geometry, factor: (0.25, 4.0),
        "beta": lambda geometry, factor: (5.0, 128.0),
        "beta_fast": lambda geometry, factor: (5.0, 128.0),
        "beta_slow": lambda geometry, factor: (0.25, 4.0),
        "low_freq_factor": lambda geometry, factor: (0.25, 3.0),
        "high_freq_factor": lambda geometry, factor: (3.5, 64.0),
        "ramp": lambda geometry, factor: ("pairs", "turns"),
        "b": lambda geometry, factor: (0.2, 1.5),
        "k": lambda geometry, factor: (0.01, 3.0),
        "coefficient": lambda geometry, factor: (0.0, 0.6),
        "logit_scale": lambda geometry, factor: ("drope",),
        "window": lambda geometry, factor: (
            max(1, geometry.original_length // 16),
            max(2, geometry.original_length * 3 // 4),
        ),
        "group_size": lambda geometry, factor: (max(2, math.ceil(factor)), max(3, math.ceil(4 * factor))),
        "stretch": lambda geometry, factor: (float(factor), 16.0 * factor),
        "low": lambda geometry, factor: (1.0, float(factor)),
        "high": lambda geometry, factor: (float(factor), WIDEST * factor),
        **{f"points.{number}": lambda geometry, factor: (1.0, WIDEST * factor) for number in range(4)},
    }
)


def ranges_of(name: str, geometry: Geometry, factor: float) -> dict[str, Sequence[Any]]:
    """Where the knobs of a method are looked for when nobody says it.

    Raises:
        InvalidArgumentError: none of its knobs is known.
    """
    kind = get_method(name)
    named = [item.name for item in fields(kind) if item.name not in kind.optional]
    own = [knob for name in named for knob in KNOWN if knob.partition(".")[0] == name]
    found = {knob: KNOWN[knob](geometry, factor) for knob in own}
    if not any(len(values) > 1 for values in found.values()):
        raise InvalidArgumentError(
            f"ranges: {name} has no knob of which it is known where to look, got no ranges; give two bounds "
            f"for one of its knobs"
        )
    return found


def usual(name: str, factor: float) -> Method | None:
    """The method of that name as it is by default; None where it needs a knob that nobody gave."""
    try:
        return get_method(name)(factor=factor)
    except TypeError:
        return None


def stretches_of(method: FixedMethod, geometry: Geometry) -> Vector:
    """[pairs] float64: by how much a method slows each pair; very much where a pair has no position."""
    made = method.spectrum(geometry).inv_freq.double()
    base = base_inv_freq(geometry, torch.float64)
    stretches: Vector = torch.where(made > 0, base / made, torch.tensor(1e9, dtype=torch.float64)).numpy()
    return stretches


def _logarithms(method: Method, geometry: Geometry) -> Vector:
    """[pairs]: of its stretches."""
    assert isinstance(method, FixedMethod)
    logarithms: Vector = np.log(stretches_of(method, geometry))
    return logarithms


def _attention(method: Method, geometry: Geometry) -> float:
    """The logarithm of a method's attention factor."""
    assert isinstance(method, FixedMethod)
    return math.log(method.spectrum(geometry).attention_factor)


def _longrope(factor: float, logarithms: Vector, attention: float) -> Method:
    low, high = ATTENTION
    return LongRoPE(
        factor=factor,
        long_factor=tuple(np.exp(logarithms).round(DIGITS).tolist()),
        attention_factor=round(min(max(math.exp(attention), low), high), DIGITS),
    )
