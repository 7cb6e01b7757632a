"""The search itself: generations of candidates, judged on the same samples, the hopeless dropped early.

CMA-ES (Hansen 2016, arXiv:1604.00772) as the package `cmaes` has it: a seed gives the same candidates again, so a
search that was stopped goes on by drawing them anew and reading from its file what each was worth. Generations read
batches of samples in turn, so that what is found fits more texts than one candidate can read; gains are counted from
the start on the same batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from cmaes import CMA
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from transformers import PreTrainedTokenizerBase

from ropescale.checks import as_float, require_choice, require_whole
from ropescale.console import Console
from ropescale.destinations import require_ordinary, sole_writer, try_folder
from ropescale.errors import AlreadyPatchedError, InvalidArgumentError, shortened
from ropescale.evals import texts
from ropescale.evals.forward import resting
from ropescale.evals.provenance import fingerprint_of_parameters
from ropescale.evals.texts import Document
from ropescale.families.reading import read_geometry
from ropescale.geometry import LONGEST, Geometry
from ropescale.injection.patch import patch_of
from ropescale.methods import FixedMethod, Method, get_method, list_methods
from ropescale.request import Request
from ropescale.search.ledger import Ledger, place
from ropescale.search.objective import OBJECTIVES, Figures, Samples, Weights, batches, samples
from ropescale.search.page import WRITTEN, write
from ropescale.search.result import FOUND, UNPATCHED, Arm, Found, Step
from ropescale.search.space import Critical, Knobs, Pairs, Space, Vector, ranges_of, usual
from ropescale.search.trial import Put, trials
from ropescale.version import __version__
from ropescale.wrappers import config_of

RECORDS = "search.jsonl"  # the settings, then a line for each thing that was worked out
UNSEEN = 10_000  # added to the seed for the needles that candidates are not judged by
CANDIDATES = 300  # where neither these nor a budget are given
FINALISTS = 3  # candidates that are judged by all samples in the end, beside the mean of the last generation
SPACES: Mapping[str, Callable[[Geometry, float], Space]] = MappingProxyType({"pairs": Pairs, "critical": Critical})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is searched, by what, and for how long.

    Raises:
        InvalidArgumentError: a value out of bounds, or two that contradict one another.
        UnknownMethodError: a method that is not in the registry.
    """

    target_length: int | None = None  # tokens
    factor: float | None = None  # target / original length, instead
    space: str = "pairs"  # a stretch for each pair; critical: LongRoPE2's; knobs: those of a method
    method: str | None = None  # whose knobs are searched
    ranges: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # knob -> two bounds, or values to choose from
    objective: str = "sum"
    weights: Mapping[str, float] = field(default_factory=dict)  # of figures, in the place of the objective's
    candidates: int | None = None  # at most; 300 where no budget is given either
    budget: float | None = None  # minutes, the comparison at the end included
    needles: int = 1  # of each of five depths, in a batch
    windows: int = 8  # of text, in a batch
    batches: int = 12  # sets of samples, which generations read in turn; fewer where texts are short
    held_out: int = 60  # windows that compare what was found with formulas; and as many needles
    compared: int = 3  # formulas that it is compared with: those that cost least in the search
    prefixes: Sequence[int] = ()  # LongRoPE's first tokens that are not scaled, tried in the end beside none
    sigma: float = 0.1  # how widely the first generation is drawn, in logarithms of stretches
    seed: int = 0
    original_length: int | None = None  # tokens; read from the config where it is not given
    existing: str = "error"  # of a scaled checkpoint: replace or compose
    layers: str = "global"
    log_n: bool = False  # queries multiplied by log-n, with every candidate
    temperature: str | None = None  # what queries are multiplied by, with every candidate

    def __post_init__(self) -> None:
        least = {"candidates": 1, "windows": 1, "batches": 1, "held_out": 2, "compared": 1, "needles": 0, "seed": 0}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None:
                rule = f"a whole number of at least {bound}"
                require_whole(f"{name}:", value, bound, rule=rule, remedy="leave it out for the default")
        for name in ("budget", "sigma"):
            value = getattr(self, name)
            if value is not None and not 0 < as_float(value) < math.inf:
                what = "minutes" if name == "budget" else "a number"
                raise InvalidArgumentError(f"{name}: must be {what} above 0, got {shortened(value)}; leave it out")
        for prefix in self.prefixes:
            require_whole("prefixes:", prefix, 1, rule="whole numbers of tokens, from 1", remedy="leave them out")
        require_choice("space:", self.space, (*SPACES, "knobs"), remedy="leave it out for 'pairs'")
        require_choice("objective:", self.objective, OBJECTIVES, remedy="leave it out for 'sum'")
        if (self.space == "knobs") != (self.method is not None):
            raise InvalidArgumentError(
                f"method: must be given with space 'knobs', and with no other, got {self.method!r} with "
                f"{self.space!r}; give both or neither"
            )
        if self.method is not None:
            get_method(self.method)
        elif self.ranges:
            raise InvalidArgumentError(
                f"ranges: must go with a method whose knobs they are, got none; give space='knobs' and a method, or "
                f"leave out {', '.join(self.ranges)}"
            )
        if self.prefixes and self.space == "knobs":
            raise InvalidArgumentError(
                "prefixes: are longrope's, which space 'knobs' does not search, got both; leave out one of them"
            )
        if self.counts.needle and not self.needles:
            raise InvalidArgumentError(
                'needles: must be at least 1 where answers count, got 0; give weights={"needle": 0} besides'
            )

    @property
    def counts(self) -> Weights:
        """What counts how much."""
        return Weights.of(self.objective, self.weights)


def search(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Sequence[Document] = "sample",
    output: Path | str | None = None,
    command: str = "",
    quiet: bool = True,
    **options: Any,
) -> Found:
    """Search for the stretches of pairs, or the knobs of a method, that cost a model least at a longer context.

    The model is loaded once: candidates are swapped into it, and afterwards it is as it was. Nothing is trained.

    Args:
        model: a causal language model of Transformers, not patched.
        tokenizer: the model's.
        data: texts to read, half of them to search by and half to compare by; "sample" (embedded) and "speeches" have
            both apart already, anything else is a path as `ropescale.evals.texts.documents` takes it, or documents.
        output: a folder that keeps every result, where a search that was stopped goes on to what it would have come
            to; nothing is written if it is not given.
        command: as it was typed, for the page.
        quiet: without a progress bar.
        options: fields of `Options`: target_length or factor, budget (minutes), candidates, space, method, ranges,
            objective, weights, seed ...

    Example:
        >>> import ropescale
        >>> from ropescale.contents import read_tokenizer
        >>> from ropescale.checkpoints import resolve
        >>> model, tokenizer = ropescale.load("tiny"), read_tokenizer(resolve("tiny"))
        >>> found = search(model, tokenizer, target_length=256, candidates=12, windows=1, batches=1)
        >>> found.arguments["method"], len(found.knobs["long_factor"])
        ('longrope', 16)

    Raises:
        InvalidArgumentError: options that do not fit the model or one another, a target within the original length,
            texts that are too short, a folder of other settings.
        AlreadyScaledError: scaled in its config, and `existing` is "error".
        CheckpointError: a folder that cannot be written.
        RopescaleError: whatever `patch` raises; a model that returns something that is not a number.
        TypeError: an option that there is not.
    """
    asked = Options(**options)
    if patch_of(model) is not None:
        raise AlreadyPatchedError(
            "search: must be given a model that is not patched, got one that is; call ropescale.unpatch(model) first"
        )
    geometry = read_geometry(config_of(model), original_length=asked.original_length, existing=asked.existing)
    factor = _factor(asked, geometry)
    length = round(factor * geometry.original_length)
    space = _space(asked, geometry, factor)
    counted = dataclasses.replace(asked, target_length=length, factor=None)
    request = Request(existing=asked.existing, original_length=asked.original_length, layers=asked.layers,
                      log_n=asked.log_n, temperature=asked.temperature)  # fmt: skip
    folder = None if output is None else Path(output)
    if folder is not None and place()[0] == 0:
        try_folder(folder)  # before texts are read
        for name in WRITTEN:
            require_ordinary(folder / name, name="output")
    seen, unseen = two_sides(data)
    compared = -(-asked.held_out // 5) if asked.needles else 0
    whole, apart = (
        samples(
            tokenizer,
            some,
            original_length=geometry.original_length,
            length=length,
            needles=needles,
            limit=limit,
            seed=asked.seed + offset,
        )
        for some, needles, limit, offset in (
            (seen, asked.needles * asked.batches, asked.windows * asked.batches, 0),
            (unseen, compared, asked.held_out, UNSEEN),
        )
    )
    settings = {
        **dataclasses.asdict(counted),
        "weights": dataclasses.asdict(asked.counts),
        "model": fingerprint_of_parameters(model),
        "samples": [whole.digest(), apart.digest()],
        "versions": {"ropescale": __version__, "torch": torch.__version__},
    }
    with ExitStack() as around:
        put = around.enter_context(trials(model, request))
        put(_start_of(space, geometry, factor))  # what patch refuses is refused before anything is written
        put(None)
        if folder is not None and place()[0] == 0:
            around.enter_context(sole_writer(folder))
        ledger = Ledger(settings, None if folder is None else folder / RECORDS)
        around.enter_context(resting(model))
        console = Console(stderr=True, quiet=quiet or ledger.rank > 0)
        run = _Run(model, put, ledger, counted, space, whole, console)
        start, formulas = run.begin(geometry, factor)
        best, steps = run.evolve(start)
        best = run.with_prefix(best)
        arms = run.compare(best, formulas, apart)
        seconds = ledger.seconds
    found = Found(
        method=best,
        start=formulas[0].name if space.starts else str(asked.method),
        steps=steps,
        arms=arms,
        geometry=geometry,
        target_length=length,
        given=request.asked(),
        seconds=round(seconds, 1),
        settings=settings,
        command=command,
    )
    if folder is not None and ledger.rank == 0:
        write(found, folder)
    return found


class _Run:
    """A search under way on a model that is as it was."""

    def __init__(
        self, model: nn.Module, put: Put, ledger: Ledger, options: Options, space: Space, whole: Samples,
        console: Console,
    ) -> None:  # fmt: skip
        self.model, self.put, self.ledger, self.options, self.space = model, put, ledger, options, space
        self.weights, self.console = options.counts, console
        if self.weights.longppl:  # key tokens by the model itself, where it reads so far
            put(get_method("yarn")(factor=whole.windows.shape[1] / whole.original_length))
            whole = whole.with_keys(model)
            put(None)
        self.whole = whole
        self.batches = batches(whole, needles=5 * options.needles, read=options.windows)
        self.origin: Method  # what gains are counted from

    def figures(self, method: Method | None, batch: int, half: int) -> dict[str, Any]:
        """What a method costs on one half of a batch, as a ledger keeps it."""
        self.put(method)
        return dataclasses.asdict(self.batches[batch].halves()[half].figures(self.model))

    def judged(self, methods: Mapping[str, Method | None], batch: int, halves: Sequence[int]) -> dict[str, Figures]:
        """What methods cost on parts of a batch, by their names."""
        jobs = {
            f"{name}, batch {batch}, half {half}": partial(self.figures, method, batch, half)
            for name, method in methods.items()
            for half in halves
        }
        found = iter(self.ledger.all(jobs))
        together = {name: [Figures(**next(found)) for _ in halves] for name in methods}
        return {name: sum(parts[1:], parts[0]) for name, parts in together.items()}

    def totals(self, methods: Mapping[str, Method | None], batch: int, halves: Sequence[int]) -> dict[str, float]:
        """The sum that is made small, of each method."""
        before = self.judged({UNPATCHED: None}, batch, halves)[UNPATCHED]
        return {
            name: figures.total(self.weights, before) for name, figures in self.judged(methods, batch, halves).items()
        }

    def halves(self, batch: int) -> list[int]:
        """The numbers of the parts of a batch."""
        return list(range(len(self.batches[batch].halves())))

    def begin(self, geometry: Geometry, factor: float) -> tuple[Vector, list[FixedMethod]]:
        """Where the search begins, and the formulas of the registry, the best on the first batch first."""
        formulas = _formulas(geometry, factor)
        totals = self.totals({method.name: method for method in formulas}, 0, self.halves(0))
        ranked = sorted(formulas, key=lambda method: totals[method.name])
        start = self.space.vector(ranked[0])
        self.origin = (
            ranked[0] if self.space.starts else usual(str(self.options.method), factor) or self.space.method(start)
        )
        return start, ranked

    def evolve(self, start: Vector) -> tuple[Method, list[Step]]:
        """The best method, and how the search came to it."""
        options, scales = self.options, self.space.scales
        optimiser = CMA(mean=start / scales, sigma=options.sigma, seed=options.seed)
        most = options.candidates or (CANDIDATES if options.budget is None else math.inf)
        steps: list[Step] = []
        best: list[tuple[float, Method]] = []
        done = 0
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(),
            console=self.console,
        ) as progress:  # fmt: skip
            bar = progress.add_task("search", total=1.0)
            while self.goes_on(optimiser, done, most):
                vectors = [optimiser.ask() for _ in range(optimiser.population_size)]
                methods = {
                    f"candidate {done + number}": self.space.method(vector * scales)
                    for number, vector in enumerate(vectors)
                }
                gains, whole = self.generation(methods, len(steps) % len(self.batches))
                order = sorted(methods, key=lambda name: (name not in whole, -gains[name]))
                optimiser.tell(
                    [(vector, float(order.index(name))) for name, vector in zip(methods, vectors, strict=True)]
                )
                best = sorted([*best, *((gains[name], methods[name]) for name in whole)], key=lambda one: -one[0])
                best = best[:FINALISTS]
                done += len(methods)
                ranked = sorted(gains.values(), reverse=True)
                steps.append(Step(candidates=done, best=ranked[0], middle=float(np.median(ranked))))
                share = max(done / most, self.ledger.seconds / 60 / options.budget if options.budget else 0.0)
                said = f"{done} candidates, best {best[0][0]:+.4f} nats against the start"
                progress.update(bar, completed=min(share, 1.0), description=said)
                if not self.console.is_terminal and len(steps) % 10 == 0:  # a log has no bar
                    progress.console.print(said, highlight=False)
        finalists = [self.origin, self.space.method(optimiser.mean * scales), *(method for _, method in best)]
        return self.winner({f"finalist {number}": one for number, one in enumerate(finalists)}), steps

    def generation(self, methods: Mapping[str, Method], batch: int) -> tuple[dict[str, float], set[str]]:
        """How much less each costs than the start on the same samples, and which ones read all of them.

        All read one half of the batch, and the better ones the other as well.
        """
        halves = self.halves(batch)
        gains: dict[str, float] = {}
        kept = dict(methods)
        for last in range(len(halves)):
            read = halves[: last + 1]
            start = self.totals({"start": self.origin}, batch, read)["start"]
            gains.update((name, start - total) for name, total in self.totals(kept, batch, read).items())
            if last + 1 < len(halves):
                better = sorted(kept, key=lambda name: -gains[name])[: -(-len(kept) // 2)]
                kept = {name: kept[name] for name in methods if name in better}
        return gains, set(kept)

    def winner(self, methods: Mapping[str, Method]) -> Method:
        """The method that costs least on all batches, the first of several that do."""
        sums = dict.fromkeys(methods, 0.0)
        for batch in range(len(self.batches)):
            for name, total in self.totals(methods, batch, self.halves(batch)).items():
                sums[name] += total
        return methods[min(sums, key=lambda name: sums[name])]

    def with_prefix(self, best: Method) -> Method:
        """The best method with LongRoPE's unscaled prefix, where one of those asked for costs less than none."""
        prefixed = {
            f"prefix {prefix}": dataclasses.replace(best, unscaled_prefix=prefix)  # type: ignore[call-arg]
            for prefix in self.options.prefixes
        }
        return self.winner({"prefix 0": best, **prefixed}) if prefixed else best

    def goes_on(self, optimiser: CMA, done: int, most: float) -> bool:
        """Whether another generation is wanted, and fits into the budget with the comparison at the end."""
        budget, seconds = self.options.budget, self.ledger.seconds
        if not done:  # one generation always
            return True
        if optimiser.should_stop() or done + optimiser.population_size > most:
            return False
        if budget is None:
            return True
        half = self.tokens(self.batches[0]) / 2  # of what every entry of the ledger has read so far
        finalists = (FINALISTS + 2 + len(self.options.prefixes)) * self.tokens(self.whole)
        compared = (self.options.compared + 2) * 2 * self.options.held_out * self.length
        ahead = finalists + compared + 2 * optimiser.population_size * half
        within: bool = seconds * (1 + ahead / (len(self.ledger.known) * half)) < budget * 60
        return within

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return int(self.whole.windows.shape[1])

    @staticmethod
    def tokens(some: Samples) -> float:
        """Of samples."""
        return float(some.windows.numel() + some.needles.numel())

    def compare(self, best: Method, formulas: Sequence[FixedMethod], apart: Samples) -> dict[str, Arm]:
        """The found method, the best formulas and the model as it is, on samples that no candidate was judged by."""
        arms: dict[str, Method | None] = {FOUND: best, **{one.name: one for one in formulas[: self.options.compared]}}
        if not self.space.starts:
            arms.setdefault(self.origin.name, self.origin)
        arms[UNPATCHED] = None

        def held(method: Method | None) -> dict[str, list[float]]:
            self.put(method)
            needles, losses = apart.losses(self.model)
            return {
                "needle": needles.double().tolist(),
                "text": losses[:, self.length // 2 - 1 :].double().mean(1).tolist(),
                "short": losses[:, : apart.original_length - 1].double().mean(1).tolist(),
            }

        found = self.ledger.all({f"held out, {name}": partial(held, method) for name, method in arms.items()})
        return {name: Arm(name=name, **losses) for name, losses in zip(arms, found, strict=True)}


def _factor(options: Options, geometry: Geometry) -> float:
    """Target / original length.

    Raises:
        InvalidArgumentError: neither or both are given, or the target lies within the original length or too far.
    """
    original = geometry.original_length
    if (options.target_length is None) == (options.factor is None):
        raise InvalidArgumentError(
            f"target_length: must be given, or factor instead, got {'neither' if options.factor is None else 'both'}; "
            f"give one of the two"
        )
    if options.target_length is not None:
        rule = f"a whole number of tokens above the original length ({original}), and at most {LONGEST}"
        require_whole("target_length:", options.target_length, original + 1, LONGEST, rule=rule, remedy="correct it")
        return options.target_length / original
    most = LONGEST / original  # before texts are read to such a length
    if not 1 < as_float(options.factor) <= most:
        raise InvalidArgumentError(
            f"factor: must be a number above 1 and at most {most:g}, which gives {LONGEST} tokens, got "
            f"{shortened(options.factor)}; correct it"
        )
    return as_float(options.factor)


def _space(options: Options, geometry: Geometry, factor: float) -> Space:
    if options.method is None:
        return SPACES[options.space](geometry, factor)
    ranges = options.ranges or ranges_of(options.method, geometry, factor)
    return Knobs(geometry, factor, options.method, ranges)


def _start_of(space: Space, geometry: Geometry, factor: float) -> Method:
    """Any method of the space."""
    return space.method(space.vector(get_method("yarn")(factor=factor)))


def two_sides(data: str | Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """What candidates are judged by, and what they are not.

    Raises:
        InvalidArgumentError: no texts there, or a single one.
        CheckpointError: the speeches cannot be obtained.
    """
    if data == "sample":
        return texts.training_sample(), texts.sample()
    if data == "speeches":
        every = texts.speeches()
        return texts.training(every), texts.held_out(every)
    found = sorted(texts.documents(data) if isinstance(data, str) else data, key=lambda document: document.name)
    if len(found) < 2:
        raise InvalidArgumentError(
            f"data: must hold two texts at least, one to search by and one to compare by, got {len(found)}; give more"
        )
    return found[::2], found[1::2]


def _formulas(geometry: Geometry, factor: float) -> list[FixedMethod]:
    """The methods of the registry whose frequencies are fixed and follow from the factor alone."""
    found = []
    for name in list_methods():
        kind = get_method(name)
        required = [
            item for item in dataclasses.fields(kind) if item.name != "factor" and item.default is item.default_factory
        ]
        if not issubclass(kind, FixedMethod) or required:
            continue
        method = kind(factor=factor)
        if method.when_read(geometry) is None:
            found.append(method)
    return found
