"""Temperature: what queries are multiplied by, because a longer context divides attention among more keys; pure.

Scores are products of queries and keys, so a query that is multiplied has its scores multiplied, once. Every rule goes
by the query's own position and by nothing that comes after it, so that cached and uncached decoding agree. A rule has
one coefficient, whose default gives it as it was published.

Nothing here knows a model or a method. A rule is a function of n, how many tokens a query sees (its position + 1), of
the original length L in tokens, of the factor s (target length / original length) and of the coefficient c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from ropescale.checks import as_float, require_choice
from ropescale.errors import InvalidArgumentError, shortened

LARGEST = 100.0  # coefficient; queries of half precision overflow beyond


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One way to multiply queries."""

    multiplier: Callable[[Tensor, int, float, float], Tensor]  # of n (int64), L, s and c; float32, of n's shape
    coefficient: float  # of the rule as published
    highest: float  # coefficient up to which a fit looks
    summary: str
    by_factor: bool = False  # whether it goes by s


def _log_n(n: Tensor, length: int, factor: float, coefficient: float) -> Tensor:
    """1 + c (max(1, ln n / ln L) - 1): Chiang and Cholak 2022, arXiv:2202.12172, from the original length on.

    Exactly 1 up to the original length.
    """
    published = (n.float().log() / math.log(length)).clamp(min=1.0)
    # exactly the published one at c = 1: no bit of it is lost by - 1 and + 1
    scaled = 1 + coefficient * (published - 1)
    return torch.where(n > length, scaled, 1.0)  # a rounded ln L may exceed the other one


def _llama4(n: Tensor, length: int, factor: float, coefficient: float) -> Tensor:
    """1 + c ln(1 + floor(n / L)), with c = 0.1: Llama 4, attn_scale and floor_scale of its config.

    Theirs are L = 8192 whatever the length of pretraining, and layers without rotation alone; here L is the original
    length, and the layers are those that rotate. Exactly 1 while n is below L; the query at L - 1, which sees L
    tokens, is on the first step already, as in theirs.
    """
    return 1 + coefficient * (1 + n // length).float().log()


def _drope(n: Tensor, length: int, factor: float, coefficient: float) -> Tensor:
    """1 + c ln s: DroPE, Gelberg et al. 2025, arXiv:2512.12167, section 4.3, with its c of SmolLM-360M.

    The same for every query, within the original length too; 1 at factor 1.
    """
    return torch.full_like(n, 1 + coefficient * math.log(factor), dtype=torch.float32)


def _scalable(n: Tensor, length: int, factor: float, coefficient: float) -> Tensor:
    """Scalable softmax, Nakanishi 2025, arXiv:2501.19399, equation 2, untrained: c ln n / mean(ln 1, ..., ln L).

    The paper's s ln n has an s for each head, which is trained. Here, untrained, all heads have one, and the mean of
    ln n over the original length is taken out, so that queries within it are multiplied by c on average: the early
    ones by less (the first by 0, since it sees itself alone), the late ones by more. So within the original length
    too a model is not what it was.
    """
    return n.float().log() * (coefficient * length / math.lgamma(length + 1))


def _yarn(n: Tensor, length: int, factor: float, coefficient: float) -> Tensor:
    """(1 + c ln max(1, n / L))^2: YaRN's attention factor, Peng et al. 2023, arXiv:2309.00071, equation 22, of the
    length that a query sees in the place of the factor.

    Squared, since the attention factor multiplies queries and keys, and this queries alone. Exactly 1 up to the
    original length. A method with an attention factor of its own keeps it: give attention_factor=1 beside this.
    """
    return (1 + coefficient * (n.float() / length).clamp(min=1.0).log()).square()


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "drope": Rule(
            multiplier=_drope, coefficient=0.103, highest=1.0, summary="1 + c ln(factor), c = 0.103", by_factor=True
        ),
        "llama4": Rule(
            multiplier=_llama4, coefficient=0.1, highest=1.0, summary="1 + c ln(1 + floor(n / L)), c = 0.1"
        ),
        "log_n": Rule(
            multiplier=_log_n, coefficient=1.0, highest=3.0, summary="1 + c (max(1, ln n / ln L) - 1), c = 1"
        ),
        "scalable": Rule(
            multiplier=_scalable, coefficient=1.0, highest=2.0, summary="c ln n / mean of ln 1 ... ln L, c = 1"
        ),
        "yarn": Rule(multiplier=_yarn, coefficient=0.1, highest=0.5, summary="(1 + c ln max(1, n / L))^2, c = 0.1"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A rule and its coefficient.

    Example:
        >>> from ropescale.temperature import Temperature
        >>> Temperature.of("llama4").coefficient
        0.1
        >>> str(Temperature(rule="llama4", coefficient=0.2))
        'llama4:0.2'

    Raises:
        InvalidArgumentError: no rule of that name, or a coefficient that is no number from 0 to 100.
    """

    rule: str
    coefficient: float

    def __post_init__(self) -> None:
        require_choice("temperature:", self.rule, RULES, remedy="leave it out for none")
        if not 0 <= as_float(self.coefficient) <= LARGEST:
            raise InvalidArgumentError(
                f"temperature: the coefficient of {self.rule} must be a number from 0 to {LARGEST:g}, got "
                f"{shortened(self.coefficient)}; leave it out for {RULES[self.rule].coefficient:g}"
            )
        object.__setattr__(self, "coefficient", float(self.coefficient))

    @classmethod
    def of(cls, value: Any) -> Self:
        """What a caller gives: "llama4", "llama4:0.2", {"rule": "llama4", "coefficient": 0.2}, or one of these.

        Without a coefficient the rule is the published one.

        Raises:
            InvalidArgumentError: anything else.
        """
        match value:
            case cls():
                return value
            case str():
                rule, colon, number = value.partition(":")
                coefficient = _number(number) if colon else None
            case {"rule": str(rule), **others} if others.keys() <= {"coefficient"}:
                coefficient = others.get("coefficient")
            case _:
                raise InvalidArgumentError(
                    f"temperature: must be a rule ({', '.join(RULES)}), with or without a coefficient, got "
                    f"{shortened(value)}; write it as in 'log_n' or 'log_n:0.8'"
                )
        require_choice("temperature:", rule, RULES, remedy="leave it out for none")
        return cls(rule=rule, coefficient=RULES[rule].coefficient if coefficient is None else coefficient)

    def __str__(self) -> str:
        """As `of` reads it."""
        return self.rule if self.published else f"{self.rule}:{self.coefficient!r}"

    @property
    def published(self) -> bool:
        """Whether the coefficient is that of the published rule."""
        return self.coefficient == RULES[self.rule].coefficient

    @property
    def by_factor(self) -> bool:
        """Whether the rule goes by target length / original length."""
        return RULES[self.rule].by_factor

    def multiplier(self, positions: Tensor, length: int, factor: float) -> Tensor | None:
        """[...] float32: what queries at these positions (int64) are multiplied by; None for nothing.

        `length` is the original length in tokens, `factor` the target length / original length. Padding, whose
        positions may lie before the first, counts as the first.
        """
        if length < 2:  # no logarithm to divide by
            return None
        return RULES[self.rule].multiplier(positions.clamp(min=0) + 1, length, factor, self.coefficient)


LOG_N = Temperature.of("log_n")  # which `log_n=True` spells


def least(cost: Callable[[float], float], high: float, *, steps: int = 10) -> tuple[float, dict[float, float]]:
    """The coefficient from 0 to `high` that costs least, and what each that was tried costs; 0 is among them.

    Golden-section search, which takes a cost to have one valley: each step shrinks the bracket to 0.62 of itself.
    """
    tried: dict[float, float] = {}

    def costs(coefficient: float) -> float:
        if coefficient not in tried:
            tried[coefficient] = cost(coefficient)
        return tried[coefficient]

    low, golden = 0.0, (math.sqrt(5) - 1) / 2
    costs(low)
    left, right = high - golden * (high - low), low + golden * (high - low)
    for _ in range(steps):
        if costs(left) <= costs(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    return min(tried, key=lambda coefficient: tried[coefficient]), tried


def with_temperature(temperature: Temperature | None) -> str:
    """What is said of it after a method: " with log_n"; nothing for none."""
    return "" if temperature is None else f" with {temperature}"


def _number(text: str) -> Any:
    """The number that a text says; the text where it says none."""
    try:
        return float(text)
    except ValueError:
        return text
