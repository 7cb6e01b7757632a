"""What a search has found: a method with its knobs, and how it compares on samples that no candidate was judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropescale.evals.statistics import Estimate, paired_bootstrap
from ropescale.geometry import Geometry
from ropescale.methods import FixedMethod, Method

FOUND, UNPATCHED = "found", "unpatched"
# What arms are compared by, with the heading of each
MEASURES = {
    "needle": "an answer's token",
    "text": "text, last half",
    "short": "text within the original length",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One generation."""

    candidates: int  # judged so far
    best: float  # of the generation: how much less its best candidate costs than the start, on the same samples; nats
    middle: float  # the same of its median candidate


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method on samples that no candidate was judged by; losses in nats a token."""

    name: str  # of the registry, "found" or "unpatched"
    needle: Sequence[float]  # [needles] of the tokens of each answer
    text: Sequence[float]  # [windows] of the last half of each
    short: Sequence[float]  # [windows] of the tokens within the original length

    def mean(self, measure: str) -> float:
        """Over the samples."""
        values: Sequence[float] = getattr(self, measure)
        return sum(values) / len(values)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to.

    Example:
        >>> import ropescale
        >>> from ropescale.contents import read_tokenizer
        >>> from ropescale.checkpoints import resolve
        >>> from ropescale.search import search
        >>> model, tokenizer = ropescale.load("tiny"), read_tokenizer(resolve("tiny"))
        >>> found = search(model, tokenizer, factor=2, candidates=12, windows=1, batches=1)
        >>> ropescale.patch(model, **found.arguments).config.max_position_embeddings
        256
    """

    method: Method  # with its knobs
    start: str  # where the search began: the formula that was best on its samples, or the method of the knobs
    steps: Sequence[Step]
    arms: Mapping[str, Arm]  # found, the best formulas and the unpatched model, on held-out samples
    geometry: Geometry
    target_length: int  # tokens
    given: Mapping[str, Any]  # what else `patch` was asked for: existing, layers, log_n, original_length
    seconds: float
    settings: Mapping[str, Any]
    command: str = ""

    @property
    def knobs(self) -> dict[str, Any]:
        """Those of the method that are not its defaults, without the factor, as JSON can hold them."""
        kept = {name: value for name, value in self.method.knobs().items() if name != "factor"}
        for name in reversed(list(kept)):
            fewer = {other: value for other, value in kept.items() if other != name}
            try:
                same = type(self.method)(factor=self.method.factor, **fewer) == self.method
            except TypeError:  # one that it needs
                same = False
            kept = fewer if same else kept
        return kept

    @property
    def arguments(self) -> dict[str, Any]:
        """What `ropescale.patch` takes beside the model."""
        return {"method": self.method.name, "factor": self.method.factor, **self.given, **self.knobs}

    @property
    def measures(self) -> list[str]:
        """Those that were read: no needle is where none was asked for."""
        return [measure for measure in MEASURES if getattr(self.arms[FOUND], measure)]

    @property
    def formulas(self) -> list[str]:
        """The arms that no search has found."""
        return [name for name in self.arms if name not in (FOUND, UNPATCHED)]

    def best(self, measure: str) -> str:
        """The formula that is best by a measure on the held-out samples."""
        return min(self.formulas, key=lambda name: self.arms[name].mean(measure))

    def against(self, other: str, measure: str) -> Estimate:
        """How much more the found method costs than another arm on the same samples, with the 95 % interval."""
        return paired_bootstrap(getattr(self.arms[other], measure), getattr(self.arms[FOUND], measure))

    @property
    def exports(self) -> bool:
        """Whether it is fixed frequencies, which a config can state without ropescale."""
        return isinstance(self.method, FixedMethod) and self.method.when_read(self.geometry) is None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        compared = {
            name: {
                measure: dict(zip(Estimate._fields, self.against(name, measure), strict=True))
                for measure in self.measures
            }
            for name in self.arms
            if name != FOUND
        }
        return {
            "arguments": self.arguments,
            "target_length": self.target_length,
            "start": self.start,
            "seconds": self.seconds,
            "command": self.command,
            "settings": dict(self.settings),
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "arms": {
                name: {measure: arm.mean(measure) for measure in self.measures} for name, arm in self.arms.items()
            },
            "found_minus": compared,
        }
