"""Evaluations that never happened, of which the truth is known: what a decision is held against.

Knows nothing of how a decision is made: rates, difficulties and losses are drawn here, and claims are judged by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from ropescale.evals.decision.measures import Evidence
from ropescale.evals.decision.preference import Means
from ropescale.evals.results import UNPATCHED, Arm

LENGTHS = (4096, 8192, 16384, 32768)
ORIGINAL, GOAL = 8192, 32768
INSIDE = sum(n <= ORIGINAL for n in LENGTHS)
LEVELS = (0.02, 0.2, 0.4, 0.6, 0.8, 0.85, 0.88, 0.95, 0.99)  # of what is found, about the threshold in particular
# nats per token above the unpatched model's inside, about the tolerance of log 1.25 = 0.223 in particular
LOSSES = (0.0, 0.005, 0.02, 0.1, 0.2, 0.25, 0.6, 1.5)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What one arm does: its rate at each length and depth, and its mean loss up to each length."""

    arm: Arm
    rates: np.ndarray  # [lengths, depths]
    losses: np.ndarray  # [lengths] nats above the unpatched model's inside

    @property
    def found(self) -> float:
        return float(self.rates[INSIDE:].mean())

    @property
    def read(self) -> float:
        return float(self.losses[INSIDE:].mean())


@dataclass(frozen=True, kw_only=True)
class World:
    """Arms with their truth, the unpatched model first, and all prompts and windows that they could be given."""

    truths: list[Truth]
    answers: dict[Arm, np.ndarray]  # [rounds, lengths, depths]
    texts: dict[Arm, np.ndarray]  # [windows, lengths] nats above the unpatched model's inside

    def evidence(self, rounds: dict[Arm, int], windows: int) -> list[Evidence]:
        """What arms have shown after so many rounds of theirs."""
        made = []
        for place, truth in enumerate(self.truths):
            answers, texts = self.answers[truth.arm][: rounds[truth.arm]], self.texts[truth.arm][:windows]
            depths = answers.shape[2]
            made.append(
                Evidence(
                    arm=truth.arm,
                    found=answers[:, INSIDE:].reshape(len(answers), -1),
                    read=dict(enumerate(texts[:, INSIDE:].mean(axis=1))),
                    by_length={n: answers[:, i] for i, n in enumerate(LENGTHS)},
                    weights=dict.fromkeys(LENGTHS, (1.0,) * depths),
                    losses={n: dict(enumerate(texts[:, i])) for i, n in enumerate(LENGTHS)},
                    inside=float(texts[:, 0].mean()) if len(texts) else math.nan,
                    means=Means.STATIC if place else Means.NOTHING,
                )
            )
        return made


def world(seed: int, *, arms: int | None = None, rates: tuple[float, ...] = (), most: int = 100) -> World:
    """Arms drawn at random, some of them alike, or of these rates at every length; `most` prompts a length."""
    rng = np.random.default_rng(seed)
    number = len(rates) or arms or int(rng.integers(2, 8))
    depths = int(rng.choice([1, 2, 5]))
    spread = 0.0 if rates else float(rng.choice([0.0, 0.4, 1.0]))  # of the rates over depths
    truths: list[Truth] = []
    for place in range(number):
        arm = Arm(method=f"m{place}", factor=4.0) if place else UNPATCHED
        if len(truths) > 1 and not rates and rng.random() < 0.4:  # one like another
            alike = truths[int(rng.integers(0, len(truths)))]
            truths.append(Truth(arm=arm, rates=alike.rates, losses=alike.losses))
            continue
        levels = np.full(len(LENGTHS), rates[place]) if rates else np.sort(rng.choice(LEVELS, len(LENGTHS)))[::-1]
        by_depth = norm.ppf(levels)[:, None] + spread * rng.normal(size=depths)
        losses = np.sort(rng.choice(LOSSES, len(LENGTHS)))
        if not place:
            losses[:INSIDE] = 0.0
        truths.append(Truth(arm=arm, rates=norm.cdf(by_depth), losses=losses))
    rounds, windows = max(1, most // depths), int(rng.integers(3, 25))
    # what one arm finds hard is mostly hard for the others, and a window that is hard to read is so for all
    shared = rng.normal(size=(rounds, len(LENGTHS), depths))
    common = rng.normal(0, 0.3, size=(windows, len(LENGTHS)))
    likeness = float(rng.choice([0.0, 0.7, 0.95]))
    answers, texts = {}, {}
    for truth in truths:
        own = rng.normal(size=shared.shape)
        difficulty = math.sqrt(likeness) * shared + math.sqrt(1 - likeness) * own
        answers[truth.arm] = (norm.cdf(difficulty) < truth.rates).astype(float)
        noise = rng.normal(0, float(rng.choice([0.003, 0.03, 0.2])), size=common.shape)
        texts[truth.arm] = truth.losses + common + noise
    return World(truths=truths, answers=answers, texts=texts)
