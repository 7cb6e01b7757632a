"""What the cells of an arm hold for a decision: prompts as rounds of scores, windows as nats per token.

Knows cells and what kinds of tasks there are; knows no statistics and no words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ropescale.evals.decision.preference import Means, means_of
from ropescale.evals.results import UNPATCHED, Arm, Cell, Results
from ropescale.evals.statistics import band_edges
from ropescale.evals.tasks.base import Loss, Retrieval, Task, find, of_cells

Array = np.ndarray[Any, np.dtype[Any]]
Windows = Mapping[Hashable, float]  # window -> mean nats per token


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What one arm showed of what a goal asks for. Round i of every arm asked the same prompts."""

    arm: Arm
    found: Array  # [rounds, strata] scores of prompts longer than the original length, up to the goal
    read: Windows = field(default_factory=dict)  # windows of text, between the original length and the goal
    by_length: Mapping[int, Array] = field(default_factory=dict)  # length -> [rounds, strata] scores of its prompts
    weights: Mapping[int, tuple[float, ...]] = field(default_factory=dict)  # length -> of its strata
    # end of a band, or length -> window -> nats per token above the unpatched model's inside the original length
    losses: Mapping[int, Windows] = field(default_factory=dict)
    inside: float = math.nan  # nats per token above the unpatched model's inside the original length
    means: Means = Means.STATIC
    reaches: bool = True  # it was run up to the goal
    round_seconds: float = math.nan  # what one more round takes
    window_seconds: float = math.nan  # what one more window takes


def lengths_of(results: Results, arm: Arm, task: str) -> list[int | None]:
    """At which lengths (None: without one) an arm has cells of a task, ascending."""
    lengths = (*results.settings.lengths, None)
    return [length for length in lengths if results.cell(arm, task, length) is not None]


def tasks_of(results: Results) -> list[Task]:
    """The tasks with cells of the unpatched model, in the order of the settings."""
    found = []
    for name in results.settings.tasks:
        lengths = lengths_of(results, UNPATCHED, name)
        losses = [cell_of(results, UNPATCHED, name, length).of_losses for length in lengths]
        if lengths:
            found.append(of_cells(name, length=lengths != [None], losses=any(losses)))
    return found


def basis_of(tasks: Collection[Task]) -> tuple[Retrieval, ...]:
    """The tasks that say what is found: those of a group that stands alone where any was run, else all."""
    retrieval = [task for task in tasks if isinstance(task, Retrieval)]
    alone = [task for task in retrieval if task.group is not None and task.group.alone]
    return tuple(alone or retrieval)


def loss_task_of(tasks: Collection[Task]) -> Loss | None:
    """The task that says how text is read: by position first, whose bands are of the same windows; then as listed."""
    curves = [task for task in tasks if isinstance(task, Loss) and task.curve]
    return min(curves, key=lambda task: (not task.by_position, task.place), default=None)


def is_within(arm: Arm, original_length: int, length: int | None) -> bool:
    """Whether an arm is made for a length: it is not run beyond its factor times the original length."""
    return arm.unextended or length is None or length <= arm.factor * original_length


def is_finished(results: Results, arm: Arm) -> bool:
    """Whether an arm has a cell for each of the unpatched model's that it can read.

    Of a task that holds all shorter lengths in its longest one, only that is asked for. A cell may hold fewer samples
    than the unpatched model's: what is compared then are those that both have.
    """
    for task in results.settings.tasks:
        expected = [
            length
            for length in lengths_of(results, UNPATCHED, task)
            if is_within(arm, results.settings.original_length, length)
        ]
        if find(task).reads_all:
            expected = expected[-1:]
        if set(expected) - set(lengths_of(results, arm, task)):
            return False
    return True


def cell_of(results: Results, arm: Arm, task: str, length: int | None) -> Cell:
    """A cell that is known to be there."""
    cell = results.cell(arm, task, length)
    assert cell is not None
    return cell


def too_long(cell: Cell) -> set[int]:
    """The numbers of the samples that the arm was not asked, since they are longer than it reads."""
    return {number for number, sample in enumerate(cell.samples) if sample.get("left_out")}


def shared(cell: Cell, other: Cell) -> Cell:
    """A cell with those of its samples that another one of the same task and length holds too.

    Arms have different numbers of samples where some were given more; each has the first ones of every depth, or the
    first windows.
    """
    if len(cell.samples) == len(other.samples):
        return cell
    theirs = {*_places(other)}
    kept = [one for one, place in zip(cell.samples, _places(cell), strict=True) if place in theirs]
    return dataclasses.replace(cell, samples=kept)


def _places(cell: Cell) -> list[tuple[Hashable, int]]:
    """Of each sample: its window or its depth, and how many with that came before."""
    met: dict[Hashable, int] = {}
    places = []
    for one in cell.samples:
        of = (str(one["document"]), str(one.get("window"))) if "nll" in one else one.get("depth")
        places.append((of, met.setdefault(of, 0)))
        met[of] += 1
    return places


def scores(cell: Cell, rule: str = "score", without: Collection[int] = ()) -> list[float]:
    """The score of each sample but some by a rule; what could not be scored counts as 0."""
    values = [sample.get(rule) for number, sample in enumerate(cell.samples) if number not in without]
    return [float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0 for value in values]


def beyond(results: Results, goal: int) -> list[int]:
    """The tested lengths that are longer than the original one, up to a goal."""
    return [n for n in results.settings.lengths if results.settings.original_length < n <= goal]


def evidence_of(results: Results, arm: Arm, goal: int) -> Evidence:
    """What an arm showed up to a goal, beside the unpatched model on the same prompts and windows."""
    tasks = tasks_of(results)
    basis, loss_task = basis_of(tasks), loss_task_of(tasks)
    long = {n for n in beyond(results, goal) if any(results.cell(UNPATCHED, task.name, n) for task in basis)}
    asked = [(task.name, n) for task in basis for n in lengths_of(results, UNPATCHED, task.name) if n in long]
    found = [strata for task, n in asked for strata in _strata(results, arm, task, n).values()]
    read, unpatched_read = (_read(results, one, loss_task, goal) for one in (arm, UNPATCHED))
    by_length, weights = _by_length(results, arm, basis)
    losses = _losses(results, arm, loss_task)
    inside = [*losses[min(losses)].values()] if losses else []
    rows = {(task, n): len(_strata(results, arm, task, n)) for task, n in asked}
    return Evidence(
        arm=arm,
        found=_rounds(found),
        read=read,
        by_length=by_length,
        weights=weights,
        losses=losses,
        inside=float(np.mean(inside)) if inside else math.nan,
        means=means_of(arm),
        round_seconds=math.fsum(_seconds(results, arm, task, n) * strata for (task, n), strata in rows.items()),
        window_seconds=_window_seconds(results, arm, loss_task, goal),
        reaches=is_within(arm, results.settings.original_length, max(beyond(results, goal), default=0))
        and all(_strata(results, arm, task, n) for task, n in asked)
        and bool(read) == bool(unpatched_read),
    )


def _by_length(
    results: Results, arm: Arm, basis: Collection[Retrieval]
) -> tuple[dict[int, Array], dict[int, tuple[float, ...]]]:
    """Length -> rounds of all basis tasks' prompts, and strata's weights by which every task counts alike."""
    rounds, weights = {}, {}
    for length in results.settings.lengths:
        each = [_strata(results, arm, task.name, length) for task in basis]
        if each and all(each):
            rounds[length] = _rounds([strata for task in each for strata in task.values()])
            weights[length] = tuple(1 / len(task) for task in each for _ in task)
    return rounds, weights


def _rounds(strata: list[list[float]]) -> Array:
    """Scores [rounds, strata], of as many rounds as are whole."""
    whole = min(map(len, strata), default=0)
    return np.array([one[:whole] for one in strata], dtype=np.float64).reshape(len(strata), whole).T


def _strata(results: Results, arm: Arm, task: str, length: int | None) -> dict[Hashable, list[float]]:
    """Depth -> the scores of its prompts by their numbers; all in one where depths were not asked for but drawn."""
    cell = results.cell(arm, task, length)
    asked = results.settings.tasks[task].get("depths")
    found: dict[Hashable, list[float]] = {}
    if cell is not None:
        for sample, score in zip(cell.samples, scores(cell), strict=True):
            depth = sample.get("depth")
            found.setdefault(depth if isinstance(asked, (list, tuple)) and depth in asked else None, []).append(score)
    return found


def _seconds(results: Results, arm: Arm, task: str, length: int | None) -> float:
    """What one sample of a cell took; nan where that was not written."""
    took = [one.seconds for one in results.timings if (one.task, one.arm, one.length) == (task, arm, length)]
    cell = results.cell(arm, task, length)
    return math.fsum(took) / len(cell.samples) if took and cell is not None and cell.samples else math.nan


def _window_seconds(results: Results, arm: Arm, loss_task: Loss | None, goal: int) -> float:
    """What one more window of text takes."""
    if loss_task is None or not (lengths := _read_lengths(results, arm, loss_task, goal)):
        return math.nan
    cell = cell_of(results, arm, loss_task.name, lengths[0])
    windows = len(nats_of(cell))
    return _seconds(results, arm, loss_task.name, lengths[0]) * len(cell.samples) / windows if windows else math.nan


def _read_lengths(results: Results, arm: Arm, loss_task: Loss, goal: int) -> list[int]:
    """The lengths of the cells that say how an arm reads text up to a goal.

    A cell by position holds all shorter lengths: it is the shortest that holds the goal, else the longest; of the
    unpatched model all, since other arms have theirs at different lengths. Of the others it is the longest up to the
    goal.
    """
    original = results.settings.original_length
    lengths = [n for n in lengths_of(results, arm, loss_task.name) if n is not None and original < n]
    if goal <= original or not lengths:
        return []
    if not loss_task.by_position:
        return [n for n in lengths if n <= goal][-1:]
    enough = [n for n in lengths if n >= goal] or lengths[-1:]
    return enough[:1] if arm != UNPATCHED else [*enough, *(n for n in lengths if n not in enough)]


def _read(results: Results, arm: Arm, loss_task: Loss | None, goal: int) -> Windows:
    """Window, of its length -> nats per token beyond the original length, up to the goal."""
    if loss_task is None:
        return {}
    low, high = (results.settings.original_length, goal) if loss_task.by_position else (0, None)
    return {
        (length, window): nats
        for length in _read_lengths(results, arm, loss_task, goal)
        for window, nats in nats_of(cell_of(results, arm, loss_task.name, length), low, high).items()
    }


def nats_of(cell: Cell, low: int = 0, high: int | None = None) -> Windows:
    """Window -> mean nats per token; of a cell by position, of the buckets that end after `low` and at `high`."""
    sums: dict[Hashable, list[float]] = {}
    for number, one in enumerate(cell.samples):
        nats, tokens = one["nll"], one["tokens"]
        if isinstance(nats, list):
            ends = one["edges"][1:]
            inside = [i for i, end in enumerate(ends) if low < end and (high is None or end <= high)]
            nats, tokens = math.fsum(nats[i] for i in inside), sum(tokens[i] for i in inside)
        # pieces of one window are one observation
        window = (str(one["document"]), str(one.get("window", number)))
        total = sums.setdefault(window, [0.0, 0])
        total[0] += nats
        total[1] += tokens
    return {window: nats / tokens for window, (nats, tokens) in sums.items() if tokens}


def _losses(results: Results, arm: Arm, loss_task: Loss | None) -> dict[int, Windows]:
    """End of a band (or context length) -> window -> nats per token above the unpatched model's inside."""
    if loss_task is None:
        return {}
    original = results.settings.original_length
    lengths = [n for n in lengths_of(results, arm, loss_task.name) if n is not None]
    if loss_task.by_position:
        length = max(lengths, default=None)
        inside = results.cell(UNPATCHED, loss_task.name, length) if length is not None else None
        if inside is None or length is None:
            return {}
        own, level = cell_of(results, arm, loss_task.name, length), nats_of(inside, 0, min(original, length))
        ends = band_edges(original, length)
        bands = [(0, ends[0]), *pairwise(ends)]
        return {high: _above(nats_of(own, low, high), level) for low, high in bands}
    short = max((n for n in lengths if n <= original), default=None)
    inside = None if short is None else results.cell(UNPATCHED, loss_task.name, short)
    if short is None or inside is None:
        return {}
    level = nats_of(inside)
    return {n: _above(nats_of(cell_of(results, arm, loss_task.name, n)), level) for n in lengths if n >= short}


def _above(nats: Windows, level: Windows) -> Windows:
    """Windows by number: those of another length are other windows, the first beside the first."""
    pairs = enumerate(zip(nats.values(), level.values(), strict=False))
    return {number: own - other for number, (own, other) in pairs}
