"""What a recommendation is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ropescale.checks import require_at_least, require_choice, require_whole
from ropescale.errors import InvalidArgumentError
from ropescale.export.engines import ENGINES
from ropescale.geometry import LONGEST
from ropescale.loading import Loading
from ropescale.methods import get_method

BUDGET = 30.0  # minutes
EMBEDDED = 2.0  # minutes, of the embedded model


@dataclass(frozen=True, kw_only=True)
class Options:
    """A model, the length that it is to read, and what may be spent on the answer.

    Raises:
        InvalidArgumentError: a value out of bounds, or an engine that there is not.
        UnknownMethodError: a method that is not in the registry.
    """

    model: str  # a short name, a path or a hub id
    target_length: int  # tokens
    budget: float | None = None  # minutes; 2 of the embedded model and 30 of others if not given
    texts: str = ""  # sample, speeches or a path; empty: sample for the embedded model, speeches for others
    methods: tuple[str, ...] = ()  # to race; the short list if empty
    serve_with: str | None = None  # an engine, which has to hold what is recommended exactly
    seed: int = 0  # of the race; what is promised is measured with the next one
    dtype: str = "auto"  # float32 on a CPU, bfloat16 on an accelerator
    device: str = "auto"  # the accelerator if torch sees one, else the CPU
    device_map: str | None = None  # auto, balanced ... or an object as JSON: where the parts of a larger model are
    quantization: str | None = None  # bnb-4bit, bnb-8bit or torchao-int8
    revision: str | None = None  # of a hub id
    attention: str | None = None  # Transformers' attn_implementation; the model's own if not given
    existing: str = "error"  # what methods start from on a checkpoint that is scaled already: replace or compose
    original_length: int | None = None  # tokens; read from the config where it is not given
    layers: str = "global"  # or full or all, where layers have rotations of their own

    def __post_init__(self) -> None:
        require_whole(
            "recommend: target_length",
            self.target_length,
            1,
            LONGEST,
            rule=f"a whole number of tokens, from 1 to {LONGEST}",
            remedy="give the context length you want",
        )
        require_at_least("recommend: seed", self.seed, 0)
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InvalidArgumentError(
                f"recommend: budget must be minutes, above 0, got {self.budget!r}; leave it out for {self.minutes:g}"
            )
        self.loading  # noqa: B018  # refuses what cannot be
        for name in self.methods:
            get_method(name)
        if self.serve_with is not None:
            require_choice(
                "recommend: serve_with", self.serve_with, sorted(ENGINES), remedy="leave it out for Transformers"
            )

    @property
    def loading(self) -> Loading:
        """How the model is loaded."""
        return Loading.of(self)

    @property
    def source(self) -> str:
        """What is read and named in commands: the model, or the folder of its revision."""
        return self.model if self.revision is None else self.loading.path(self.model)

    @property
    def minutes(self) -> float:
        """What may be spent."""
        return self.budget or (EMBEDDED if self.model == "tiny" else BUDGET)
