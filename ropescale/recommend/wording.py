"""How advice says things, the same on the page and in a terminal; plain text throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropescale import listing, memory
from ropescale.evals.decision.comparison import FIND, Difference
from ropescale.evals.decision.verdict import Decision
from ropescale.evals.report.findings import Share
from ropescale.evals.report.wording import (
    NOTHING,
    estimate_text,
    interval_text,
    perplexity_text,
    rate_text,
    ratio_interval_text,
    ratio_text,
)
from ropescale.evals.results import UNPATCHED, Arm
from ropescale.recommend.advice import Advice, Line, Promise
from ropescale.recommend.training import Trained

UNPATCHED_TEXT = "unpatched"
LOST = 1.02  # times the perplexity of short prompts, from which it is worth a training


def arm_text(arm: Arm) -> str:
    """An arm by its name."""
    return UNPATCHED_TEXT if arm == UNPATCHED else arm.label


def knobs_text(knobs: Mapping[str, Any]) -> str:
    """What a method was given besides its factor; lists as how long they are."""
    told = {name: f"{len(value)} factors" if isinstance(value, list) else value for name, value in knobs.items()}
    return ", ".join(f"{name} {value}" if value is not True else name for name, value in told.items())


def standing_text(arm: Arm, decision: Decision, taken: Arm) -> str:
    """What became of an arm."""
    if arm == taken:
        return "taken"
    place = next((one for one in decision.standings if one.arm == arm), None)
    if place is None:
        return "unfinished"
    if place.dropped_by is None:
        return "as good, as far as can be told" if place.can_win else ""
    out = place.dropped_by
    if out.arm == arm:
        return f"out: no more than the margin better than {arm_text(out.against)}"
    return (
        f"out: {arm_text(out.arm)} {found_text(out)} more"
        if out.measure == FIND
        else f"out: {arm_text(out.arm)} reads better"
    )


def found_text(one: Difference) -> str:
    """By how much more is found, in points."""
    value, low, high = (100 * part for part in one.estimate)
    return f"finds {value:.0f} ({low:.0f} to {high:.0f}) points"


def share_text(share: Share) -> str:
    """A rate with its interval."""
    return estimate_text(rate_text(share.rate), interval_text(share)) if share.asked else NOTHING


def entries(line: Line) -> list[str]:
    """A line of the ranked table, by `columns` but the first."""
    inside = f"{ratio_text(line.inside)} ({ratio_interval_text(line.inside)})" if line.inside else NOTHING
    return [share_text(line.found), perplexity_text(line.perplexity), inside, line.standing]


def columns(original: int, target: int) -> list[str]:
    """What the entries are, in words."""
    return [
        "arm",
        f"found at {target:,}",
        f"ppl beyond {original:,}",
        f"ppl to {original:,}",
        "standing",
    ]


def promise_text(promise: Promise, original: int, target: int) -> list[str]:
    """What is promised, and what short prompts lose."""
    told = [
        f"With prompts of another seed {arm_text(promise.arm)} finds {share_text(promise.found)} at {target:,} "
        f"tokens, where the unpatched model finds {share_text(promise.unpatched)}."
    ]
    change = promise.inside
    if change is None:
        return [*told, "Short prompts lose nothing: positions are as pretraining left them."]
    lost = "lose nothing that can be told" if change.low <= 1 else "lose little" if change.high <= LOST else "lose"
    return [
        *told,
        f"Short prompts {lost}: perplexity within {original:,} tokens {ratio_text(change)} "
        f"({ratio_interval_text(change)}), and {share_text(promise.own)} of prompts found there.",
    ]


def training_text(promise: Promise, run: Trained) -> tuple[bool, list[str]]:
    """Whether training is worth it, and why."""
    lacking = promise.found.interval[1] < promise.own.interval[0]
    losing = promise.inside is not None and promise.inside.low > LOST
    if not (lacking or losing):
        return False, [
            "Training is not needed for what was asked: what is found at the target is what is found inside."
        ]
    why = "less is found at the target than inside" if lacking else "short prompts read worse than they did"
    return True, [f"Training is worth a try: {why}. What to expect: {run.told}."]


def memory_text(advice: Advice) -> list[str]:
    """What answering one prompt needs at each length."""
    return [
        f"One prompt of {length:,} tokens takes {memory.said(need.total)} in bfloat16: {memory.said(need.weights)} of "
        f"weights, {memory.said(need.cache)} of cache, {memory.said(need.activations)} while it is read."
        for length, need in advice.memory.items()
    ]


def time_text(advice: Advice) -> str:
    """What reading the target takes as recommended."""
    times, length = advice.slower, advice.target_length
    return f"Reading {length:,} tokens takes {times:.2f} times as long as unpatched, on this machine."


def serving_text(engine: str | None, form: str) -> str:
    """What the engine is told."""
    if engine is None:
        return ""
    return f"{listing.engines()[engine].title} holds it exactly, by {form}."
