"""What the results of an evaluation say: arms compared, effective lengths, the decision; numbers, no words.

Knows cells and statistics; knows neither HTML nor how a number is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from ropescale.errors import InvalidArgumentError
from ropescale.evals.decision import Decision, decide
from ropescale.evals.decision.measures import (
    basis_of,
    cell_of,
    is_finished,
    lengths_of,
    loss_task_of,
    scores,
    shared,
    tasks_of,
    too_long,
)
from ropescale.evals.results import RECORD, UNPATCHED, Arm, Cell, Results, Settings
from ropescale.evals.statistics import (
    PERPLEXITY_TOLERANCE,
    Estimate,
    band_edges,
    effective_length,
    kept_length,
    paired_bootstrap,
    perplexity,
    perplexity_ratio,
    wilson,
)
from ropescale.evals.tasks.base import Loss, Retrieval, Short, Task, of_cells


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of the prompts that were asked; found is a fraction where a prompt has several answers."""

    found: float
    asked: int

    @property
    def rate(self) -> float:
        """From 0 to 1; nan where nothing was asked."""
        return self.found / self.asked if self.asked else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval of 95 %; nan where nothing was asked."""
        return wilson(self.found, self.asked) if self.asked else (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one arm's cells say at the lengths up to a reach; None where nothing was run that could say it."""

    arm: Arm
    reach: int  # tokens: the largest length that the row is about
    inside: float | None  # perplexity inside the original length
    change: Estimate | None  # inside, over the unpatched model's on the same tokens; None for the unpatched model
    bands: Mapping[tuple[int, int], float]  # positions from, to -> perplexity; from = to is a context length
    retrieval_inside: Share | None  # the basis' prompts of at most the original length
    retrieval_beyond: Share | None  # the longer ones
    gain_inside: Estimate | None  # of those prompts, against the unpatched model
    gain_beyond: Estimate | None
    gain: Estimate | None  # of all of the basis' prompts
    averages: Mapping[int, float]  # length -> average score over the basis
    reads: int | None  # effective length by retrieval, in tokens; 0 where the shortest misses
    reads_from: int | None  # tokens: the shortest length that it was asked at
    keeps: int | None  # effective length by perplexity, in tokens; 0 where the shortest misses
    keeps_from: int | None  # tokens: the shortest


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that the report states, in numbers."""

    results: Results
    arms: tuple[Arm, ...]  # finished, unpatched first
    unfinished: tuple[Arm, ...]
    not_run: tuple[str, ...]  # tasks of the settings without a cell
    basis: tuple[Retrieval, ...]  # the tasks that the effective length by retrieval averages over
    source: Loss | None  # the task whose perplexities the rows hold
    alone: Row  # the unpatched model at all its lengths
    groups: Mapping[float, tuple[Row, ...]]  # factor -> the unpatched model at the same lengths, then the arms
    decision: Decision  # what they say about the goal

    @property
    def settings(self) -> Settings:
        """Those of the run."""
        return self.results.settings

    @property
    def panels(self) -> dict[float, list[Arm]]:
        """Factor -> the arms that are drawn together, the unpatched model first."""
        return {factor: [row.arm for row in rows] for factor, rows in self.groups.items()} or {1.0: [UNPATCHED]}

    @property
    def patched(self) -> list[Row]:
        """The rows of all patched arms."""
        return [row for rows in self.groups.values() for row in rows if row.arm != UNPATCHED]

    @property
    def best(self) -> Row | None:
        """The row of the arm to take; None where none is."""
        return next((row for row in self.patched if row.arm == self.decision.arm), None)

    @property
    def tested(self) -> bool:
        """Whether anything was run that an effective length can be told by."""
        return any(row.reads is not None or row.keeps is not None for row in [self.alone, *self.patched])

    def row(self, arm: Arm) -> Row:
        """The row of an arm; of the unpatched model, the one at all its lengths."""
        return next((row for row in self.patched if row.arm == arm), self.alone)

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks with cells, in the order of the settings."""
        return tasks_of(self.results)

    @property
    def losses(self) -> list[Loss]:
        """Those of windows of text."""
        return [task for task in self.tasks if isinstance(task, Loss)]

    @property
    def retrieval(self) -> list[Retrieval]:
        """Those with a length and a score."""
        return [task for task in self.tasks if isinstance(task, Retrieval)]

    @property
    def short(self) -> list[Short]:
        """Those without a length, the harness's among them."""
        return [task for task in self.tasks if isinstance(task, Short)]

    def lengths(self, arm: Arm, task: Task) -> list[int]:
        """At which lengths an arm ran a task, ascending."""
        return [length for length in lengths_of(self.results, arm, task.name) if length is not None]

    def cells(self, arm: Arm, task: Task | None = None) -> Iterator[tuple[Task, Cell]]:
        """The cells of an arm, or of one of its tasks: by task, then length."""
        for one in self.tasks if task is None else [task]:
            for length in [*self.lengths(arm, one), None]:
                cell = self.results.cell(arm, one.name, length)
                if cell is not None:
                    yield one, cell

    def cell(self, arm: Arm, task: Task, length: int | None = None) -> Cell:
        """A cell that is known to be there."""
        return cell_of(self.results, arm, task.name, length)

    def at(self, arm: Arm, task: Task, length: int | None = None) -> Cell | None:
        """A cell, where it is there."""
        return self.results.cell(arm, task.name, length)

    def before(self, cell: Cell) -> Cell:
        """The unpatched model's cell of the same task and length."""
        return cell_of(self.results, UNPATCHED, cell.task, cell.length)

    def gain(self, cell: Cell | None) -> Estimate | None:
        """Score of a cell minus the unpatched model's on the same samples; None of the unpatched model."""
        if cell is None or cell.arm == UNPATCHED:
            return None
        cells = shared(self.before(cell), cell), shared(cell, self.before(cell))
        left_out = set().union(*map(too_long, cells))
        before, after = (scores(one, without=left_out) for one in cells)
        return paired_bootstrap(before, after, seed=self.settings.seed) if before else None

    def change(self, cell: Cell) -> Estimate | None:
        """Perplexity of a cell over the unpatched model's on the same tokens; None of the unpatched model."""
        if cell.arm == UNPATCHED:
            return None
        cells = shared(self.before(cell), cell), shared(cell, self.before(cell))
        tokens = [one["tokens"] for one in cells[1].samples]
        if not sum(tokens):
            return None
        before, after = ([one["nll"] for one in which.samples] for which in cells)
        return perplexity_ratio(before, after, tokens, seed=self.settings.seed, blocks=windows_of(cells[1]))


def read_findings(results: Results) -> Findings:
    """What the finished arms say.

    Raises:
        InvalidArgumentError: the unpatched model, which all others are compared with, is not finished, or a cell is
            not as an evaluation writes it.
    """
    require_sound(results)
    _check_unpatched(results)
    tasks = tasks_of(results)
    patched = [arm for arm in results.arms() if arm != UNPATCHED]
    finished = [arm for arm in patched if is_finished(results, arm)]
    basis, source = basis_of(tasks), loss_task_of(tasks)

    def row(arm: Arm, reach: int) -> Row:
        return _row(results, arm, reach, basis, source)

    groups: dict[float, tuple[Row, ...]] = {}
    for arm in finished:
        reach = _reach(results, arm)
        rows = groups.get(arm.factor) or (row(UNPATCHED, reach),)
        groups[arm.factor] = (*rows, row(arm, reach))
    return Findings(
        results=results,
        arms=(UNPATCHED, *finished),
        unfinished=tuple(arm for arm in patched if arm not in finished),
        not_run=tuple(name for name in results.settings.tasks if name not in {task.name for task in tasks}),
        basis=basis,
        source=source,
        alone=row(UNPATCHED, max(results.settings.lengths)),
        groups=groups,
        decision=decide(results),
    )


def require_sound(results: Results) -> None:
    """Refuse results with a cell that is not as an evaluation writes it.

    Raises:
        InvalidArgumentError: names what is wrong with it.
    """
    for cell in results.cells.values():
        _check(results, cell)


def share(cell: Cell, rule: str = "score", depth: float | None = None) -> Share:
    """Of all samples of a cell, or of those at one depth."""
    every = zip(cell.samples, scores(cell, rule), strict=True)
    asked = [(sample, score) for sample, score in every if not sample.get("left_out")]
    found = [score for sample, score in asked if depth is None or sample.get("depth") == depth]
    return Share(found=math.fsum(found), asked=len(found))


def windows_of(cell: Cell) -> int:
    """How many windows of text a perplexity is over: strided, each is read in several pieces."""
    return len({(str(one["document"]), str(one.get("window"))) for one in cell.samples})


def position_perplexities(cell: Cell) -> tuple[list[int], list[float]]:
    """Edges and perplexities of the buckets of a cell by position, over all its windows."""
    edges = list(cell.samples[0]["edges"])
    columns = [_between(cell, first, last) for first, last in pairwise(edges)]
    return edges, [perplexity(math.fsum(nats), sum(tokens)) for nats, tokens in columns]


def finite(value: float | None) -> bool:
    """Whether there is a value that can be compared."""
    return value is not None and math.isfinite(value)


def _reach(results: Results, arm: Arm) -> int:
    """The largest length at which an arm has a cell."""
    met = [
        length for task in results.settings.tasks for length in lengths_of(results, arm, task) if length is not None
    ]
    return max(met, default=results.settings.original_length)


def _check_unpatched(results: Results) -> None:
    tasks = results.settings.tasks
    had = {(task, length) for task in tasks for length in lengths_of(results, UNPATCHED, task)}
    needed = {
        (task, length)
        for arm in results.arms()
        for task in tasks
        for length in lengths_of(results, arm, task)
        if (task, length) not in had
    }
    if needed or not had:
        missing = ", ".join(sorted(f"{task} at {length}" if length else task for task, length in needed)) or "all"
        raise InvalidArgumentError(
            f"results: the unpatched model must be finished, since every arm is compared with it, got {missing} "
            f"missing in {str(results.folder)!r}; give the same command again to go on"
        )


def _check(results: Results, cell: Cell) -> None:
    """Refuse a cell that lacks what its task writes."""
    fault = cell.lacks
    if not fault and cell.task != RECORD:
        task = of_cells(cell.task, length=cell.length is not None, losses=cell.of_losses)
        by_position = isinstance(task, Loss) and task.by_position
        fault = next(
            (f"a sample without {name}" for one in cell.samples for name in task.fields if name not in one), ""
        )
        kind, said = (list, "a list") if by_position else ((int, float), "a number")
        numbers = {"edges", "nll", "tokens"}.intersection(task.fields)
        fault = fault or next(
            (
                f"{name} that is not {said}"
                for one in cell.samples
                for name in sorted(numbers)
                if not isinstance(one[name], kind)
            ),
            "",
        )
        if not fault and by_position:
            uneven = any(not len(s["edges"]) == len(s["nll"]) + 1 == len(s["tokens"]) + 1 for s in cell.samples)
            edges = {tuple(one["edges"]) for one in cell.samples}
            fault = "edges that do not fit the losses" if uneven or len(edges) != 1 else ""
    if fault:
        raise InvalidArgumentError(
            f"results: every cell in {str(results.folder)!r} must be as an evaluation wrote it, got {fault} in "
            f"{cell.task!r}; remove its line from results.jsonl and give the same command again"
        )


def _row(results: Results, arm: Arm, reach: int, basis: Sequence[Task], source: Loss | None) -> Row:
    original = results.settings.original_length
    inside, change, bands = _losses(results, arm, reach, source)
    limit = _limit(results, reach, source)
    keeps = keeps_from = None
    if inside is not None and limit is not None:
        ends = _ends(inside, bands, original, reach)
        keeps, keeps_from = kept_length(ends, limit), min(ends)
    averages = _averages(results, arm, reach, basis)
    low, high = _retrieval(results, arm, 0, original, basis), _retrieval(results, arm, original, reach, basis)
    return Row(
        arm=arm,
        reach=reach,
        inside=inside,
        change=change,
        bands=bands,
        retrieval_inside=low[0],
        retrieval_beyond=high[0],
        gain_inside=low[1],
        gain_beyond=high[1],
        gain=_retrieval(results, arm, 0, reach, basis)[1],
        averages=averages,
        reads=effective_length(averages) if averages else None,
        reads_from=min(averages, default=None),
        keeps=keeps,
        keeps_from=keeps_from,
    )


def _ends(inside: float, bands: Mapping[tuple[int, int], float], original: int, reach: int) -> dict[int, float]:
    """Every band by its end, the original length first."""
    return {min(original, reach): inside, **{high: value for (_, high), value in bands.items()}}


def _limit(results: Results, reach: int, source: Loss | None) -> float | None:
    """The perplexity that still counts as kept: `PERPLEXITY_TOLERANCE` times the unpatched model's inside."""
    inside, _, _ = _losses(results, UNPATCHED, reach, source)
    return None if inside is None else PERPLEXITY_TOLERANCE * inside


def _losses(
    results: Results, arm: Arm, reach: int, source: Loss | None
) -> tuple[float | None, Estimate | None, dict[tuple[int, int], float]]:
    """Perplexity inside the original length, its ratio to the unpatched model's, and every band beyond."""
    if source is None:
        return None, None, {}
    of = _losses_by_position if source.by_position else _losses_by_length
    return of(results, arm, reach, source.name)


def _losses_by_position(
    results: Results, arm: Arm, reach: int, task: str
) -> tuple[float | None, Estimate | None, dict[tuple[int, int], float]]:
    """From the longest cell within reach: one set of windows, compared with itself unpatched."""
    lengths = [n for n in lengths_of(results, arm, task) if n is not None and n <= reach]
    if not lengths:
        return None, None, {}
    cell, other = cell_of(results, arm, task, lengths[-1]), results.cell(UNPATCHED, task, lengths[-1])
    original, seed = results.settings.original_length, results.settings.seed
    edges = band_edges(original, lengths[-1])
    bands = {
        (low, high): perplexity(math.fsum(nats), sum(tokens))
        for low, high in pairwise(edges)
        for nats, tokens in [_between(cell, low, high)]
    }
    nats, tokens = _between(cell, 0, min(original, lengths[-1]))
    if not sum(tokens):
        return None, None, bands
    change = None
    if arm != UNPATCHED and other is not None:
        ours = shared(cell, other)
        before, _ = _between(shared(other, cell), 0, min(original, lengths[-1]))
        after, of = _between(ours, 0, min(original, lengths[-1]))
        change = perplexity_ratio(before, after, of, seed=seed, blocks=windows_of(ours))
    return perplexity(math.fsum(nats), sum(tokens)), change, bands


def _losses_by_length(
    results: Results, arm: Arm, reach: int, task: str
) -> tuple[float | None, Estimate | None, dict[tuple[int, int], float]]:
    """From one perplexity a length: inside is the largest length that the original length holds."""
    original, seed = results.settings.original_length, results.settings.seed
    lengths = [n for n in lengths_of(results, arm, task) if n is not None and n <= reach]
    cells = {length: cell_of(results, arm, task, length) for length in lengths}
    beyond = {(n, n): cell.perplexity for n, cell in cells.items() if n > original}
    short = max((n for n in cells if n <= original), default=None)
    if short is None:
        return None, None, beyond
    change = None
    other = results.cell(UNPATCHED, task, short)
    if arm != UNPATCHED and other is not None:
        ours = shared(cells[short], other)
        change = perplexity_ratio(
            [one["nll"] for one in shared(other, cells[short]).samples],
            [one["nll"] for one in ours.samples],
            [one["tokens"] for one in ours.samples],
            seed=seed,
            blocks=windows_of(ours),
        )
    return cells[short].perplexity, change, beyond


def _between(cell: Cell, low: int, high: int) -> tuple[list[float], list[int]]:
    """Losses and tokens of each window's buckets that end after `low` and at `high` at the latest."""
    nats: list[float] = []
    tokens: list[int] = []
    for one in cell.samples:
        for end, loss, count in zip(one["edges"][1:], one["nll"], one["tokens"], strict=True):
            if low < end <= high:
                nats.append(loss)
                tokens.append(count)
    return nats, tokens


def _averages(results: Results, arm: Arm, reach: int, basis: Sequence[Task]) -> dict[int, float]:
    """Length -> mean of the basis tasks' scores, at the lengths that the unpatched model ran all of them at."""
    if not basis:
        return {}
    every = set.intersection(*(set(lengths_of(results, UNPATCHED, task.name)) for task in basis))
    lengths = sorted(length for length in every if length is not None and length <= reach)
    return {n: math.fsum(share(cell_of(results, arm, t.name, n)).rate for t in basis) / len(basis) for n in lengths}


def _retrieval(
    results: Results, arm: Arm, above: int, up_to: int, basis: Iterable[Task]
) -> tuple[Share | None, Estimate | None]:
    """Of all prompts of the basis with above < length <= up_to: what was found, and the gain over unpatched."""
    every: list[float] = []
    after: list[float] = []
    before: list[float] = []
    for task in basis:
        for length in lengths_of(results, arm, task.name):
            if length is not None and above < length <= up_to:
                own, other = (cell_of(results, one, task.name, length) for one in (arm, UNPATCHED))
                every += scores(own)
                after += scores(shared(own, other))
                before += scores(shared(other, own))
    if not every:
        return None, None
    gain = None if arm == UNPATCHED or not after else paired_bootstrap(before, after, seed=results.settings.seed)
    return Share(found=math.fsum(every), asked=len(every)), gain


def has_exact(cell: Cell) -> bool:
    """Whether a cell's samples were scored by a stricter rule too."""
    return any("exact" in one for one in cell.samples)


def main_score(cell: Cell | None) -> tuple[str, float] | None:
    """The metric that stands first in a cell and its value."""
    numbers = ((name, value) for name, value in ((cell and cell.scores) or {}).items())
    return next(((str(name), float(value)) for name, value in numbers), None)


def failures(cell: Cell) -> list[Mapping[str, Any]]:
    """The samples with a reply that the stricter rule of a task, else its only one, does not count as right."""
    strict = scores(cell, "exact" if has_exact(cell) else "score")
    return [one for one, score in zip(cell.samples, strict, strict=True) if "reply" in one and score < 1]
