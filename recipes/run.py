"""A finished run of training as its page, its card and its summary read it; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a model was measured as; each is empty where no length is so short."""

    perplexity: Mapping[str, float]  # length in tokens -> of whole windows
    perplexity_by_position: Mapping[str, float]  # "from-to" -> of the longest windows read
    passkey: Mapping[str, float]  # length -> share answered
    passkey_by_depth: Mapping[str, Mapping[str, float]]  # length -> depth -> share answered


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `training.json` holds of a run that is finished, but for what only going on with it needs."""

    settings: Mapping[str, Any]
    command: str
    date: str
    device: str
    threads: int
    versions: Mapping[str, str]  # package -> version
    account: Mapping[str, Any]  # of the data: sources, rows, what was dropped
    parameters: Mapping[str, int]  # "trained" and "all"
    unpatched: Figures  # of the model as it was
    before: Figures  # patched
    after: Figures  # trained
    log: Sequence[Mapping[str, Any]]  # of the Trainer
    steps: int
    tokens: int  # read in training
    seconds: float
    record: Mapping[str, Any]  # of the patch
    note: str = ""  # on the model
    logit_scale: Mapping[str, Any] | None = None  # what was tried, where one was fitted

    @classmethod
    def of(cls, ledger: Mapping[str, Any]) -> Run:
        """The run of a `training.json`."""
        known = {item.name: ledger[item.name] for item in fields(cls) if item.name in ledger}
        return cls(**{**known, **{name: Figures(**ledger[name]) for name in ("unpatched", "before", "after")}})

    def compared(self) -> Iterator[tuple[str, str, float, float]]:
        """Figure and length in words, and its value before and after training."""
        for name in ("perplexity", "passkey"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            for length, value in after.items():
                yield name, f"{name} at {int(length):,}", before[length], value
