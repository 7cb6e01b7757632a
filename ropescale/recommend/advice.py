"""Advice: what was raced and what came of it, what is promised of the arm that is taken, and what to type next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropescale.evals.report.findings import Share
from ropescale.evals.results import Arm
from ropescale.evals.statistics import Estimate
from ropescale.memory import Need
from ropescale.recommend.commands import Command, Written


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm of the race."""

    arm: Arm
    knobs: Mapping[str, Any]
    found: Share  # prompts at the target length
    perplexity: float | None  # of text beyond the original length, up to the target
    inside: Estimate | None  # perplexity within the original length over the unpatched model's; None of that one
    standing: str  # what became of it


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the arm that is taken did with prompts and windows of text that picked nothing."""

    arm: Arm
    found: Share  # prompts at the target length
    own: Share  # prompts within the original length, of the same arm
    unpatched: Share  # prompts at the target length, of the model as it is
    perplexity: float | None  # of text beyond the original length, up to the target
    inside: Estimate | None  # perplexity within the original length over the unpatched model's


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do with a model, how sure that is, and the next commands."""

    model: str
    original_length: int  # tokens
    target_length: int  # tokens
    serve_with: str | None  # an engine
    verdict: Sequence[str]  # sentences of the race's report, the first says what it decides
    lines: Sequence[Line]  # best first
    left_out: Mapping[str, str]  # method -> why it was not raced
    taken: Written
    promise: Promise
    memory: Mapping[int, Need]  # length -> of answering one prompt in bfloat16
    slower: float  # time of reading the target length over the unpatched model's, on this machine
    form: str  # what the engine is told; empty where none was named
    training: Sequence[str]  # sentences: whether it is worth it
    commands: Sequence[Command]
    searched: str  # what came of the search, or why there was none

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)
