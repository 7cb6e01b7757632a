"""What two folders differ by on the samples that both have, and what may be claimed of it; numbers and no words.

Figures of one arm, task and length have an interval of 95 % each, by the bootstrap over samples that reports use. What
is claimed has the intervals of the decision room (betting and t sequences), whose error of 5 % is shared by every
claim that the two folders could have given rise to, so that all of them hold together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ropescale.evals.decision.comparison import ERROR, Comparison
from ropescale.evals.decision.measures import Evidence, basis_of, loss_task_of, nats_of, scores
from ropescale.evals.paired.pairing import Arms, Pairing
from ropescale.evals.paired.samples import Shared
from ropescale.evals.results import Cell
from ropescale.evals.statistics import Estimate, band_edges, paired_bootstrap, perplexity, perplexity_ratio
from ropescale.evals.tasks.base import Loss, Retrieval, Short, Task

Array = np.ndarray[Any, np.dtype[Any]]

WITHIN, BEYOND, SHORT = "within", "beyond", "short"  # what a claim is about


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of each folder on one task at one length."""

    arms: Arms
    task: Task
    length: int | None  # tokens of a prompt or window
    band: tuple[int, int] | None  # positions from, to, within windows of that length; None of all of it
    before: float  # of the first folder: an average score, or a perplexity
    after: float  # of the second
    change: Estimate  # after - before of scores, after / before of perplexities; 95 %
    count: int  # samples, or windows of text
    alone: tuple[int, int]  # samples that one folder alone has

    @property
    def of_losses(self) -> bool:
        """Whether its figures are perplexities, of which less is better."""
        return isinstance(self.task, Loss)


@dataclass(frozen=True, kw_only=True, eq=False)
class Claim:
    """What may be said of two arms about one kind of prompts, with intervals that hold among all claims."""

    arms: Arms
    about: str  # `WITHIN`, `BEYOND`, or `SHORT`
    to: int | None  # tokens: up to where; None of short prompts
    task: Short | None  # of short prompts
    gained: Comparison  # the second folder against the first
    lost: Comparison  # the first against the second

    @property
    def better_by(self) -> str:
        """The measure by which the second folder's arm does better; empty where that is not shown."""
        return self.gained.better_by

    @property
    def worse_by(self) -> str:
        """The measure by which it does worse."""
        return self.lost.better_by

    @property
    def told(self) -> bool:
        """Whether anything is claimed."""
        return bool(self.better_by or self.worse_by or self.gained.opposed or self.alike)

    @property
    def alike(self) -> bool:
        """Whether the two are shown to differ by no more than makes a difference to anybody."""
        return self.gained.negligible and self.lost.negligible


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Everything that the comparison of two folders states."""

    pairing: Pairing
    rows: tuple[Row, ...]  # by arms, then task, then length
    by_length: dict[Arms, tuple[Row, ...]]  # retrieval over all tasks that say what is found, by length
    claims: tuple[Claim, ...]
    basis: tuple[Retrieval, ...]  # the tasks that say what is found
    source: Loss | None  # the task that says how text is read

    def of(self, arms: Arms, task: Task | None = None) -> list[Row]:
        """The rows of two arms, or of one of their tasks."""
        return [row for row in self.rows if row.arms == arms and task in (None, row.task)]

    @property
    def better(self) -> list[Claim]:
        """Where the second folder is shown to do better."""
        return [claim for claim in self.claims if claim.better_by]

    @property
    def worse(self) -> list[Claim]:
        """Where it is shown to do worse."""
        return [claim for claim in self.claims if claim.worse_by]


def differences_of(pairing: Pairing) -> Differences:
    """The figures of two folders, and the claims that they support."""
    basis, source = basis_of(pairing.tasks), loss_task_of(pairing.tasks)
    rows = [row for arms in pairing.arms for task in pairing.tasks for row in _rows(pairing, arms, task)]
    return Differences(
        pairing=pairing,
        rows=tuple(rows),
        by_length={arms: tuple(_found_by_length(pairing, arms, basis)) for arms in pairing.arms},
        claims=tuple(_claims(pairing, basis, source)),
        basis=basis,
        source=source,
    )


def _rows(pairing: Pairing, arms: Arms, task: Task) -> Iterator[Row]:
    lengths = pairing.lengths(arms, task)
    for length in lengths[-1:] if task.reads_all else lengths:
        shared = pairing.cells[arms, task.name, length]
        if isinstance(task, Loss):
            yield from _read(pairing, arms, task, shared)
        else:
            yield _scored(pairing, arms, task, length, [shared])


def _scored(pairing: Pairing, arms: Arms, task: Task, length: int | None, cells: list[Shared]) -> Row:
    """The row of prompts, of one task or of several."""
    before, after = _scores(cells)
    return Row(
        arms=arms,
        task=task,
        length=length,
        band=None,
        before=float(np.mean(before)),
        after=float(np.mean(after)),
        change=paired_bootstrap(before, after, seed=pairing.one.settings.seed),
        count=len(before),
        alone=(sum(one.alone[0] for one in cells), sum(one.alone[1] for one in cells)),
    )


def _scores(cells: list[Shared]) -> tuple[list[float], list[float]]:
    """The scores of both folders, prompt by prompt."""
    return (
        [score for shared in cells for score in scores(shared.one)],
        [score for shared in cells for score in scores(shared.other)],
    )


def _read(pairing: Pairing, arms: Arms, task: Loss, shared: Shared) -> Iterator[Row]:
    """The rows of windows of text: one, or one a band of positions."""
    length = shared.one.length or 0
    bands: list[tuple[int, int] | None] = [None]
    if task.by_position:
        ends = band_edges(pairing.original_length, length)
        bands = [(0, ends[0]), *pairwise(ends)]
    for band in bands:
        pieces = [_pieces(cell, band) for cell in (shared.one, shared.other)]
        before, after = ([nats for nats, _ in piece] for piece in pieces)
        tokens = [count for _, count in pieces[0]]
        if not sum(tokens):
            continue
        windows = len(nats_of(shared.one))
        change = perplexity_ratio(before, after, tokens, seed=pairing.one.settings.seed, blocks=windows)
        yield Row(
            arms=arms,
            task=task,
            length=length,
            band=band,
            before=perplexity(math.fsum(before), sum(tokens)),
            after=perplexity(math.fsum(after), sum(tokens)),
            change=change,
            count=windows,
            alone=shared.alone,
        )


def _pieces(cell: Cell, band: tuple[int, int] | None) -> list[tuple[float, int]]:
    """Nats and tokens of each sample; of a band of positions, those of its buckets, window by window."""
    if band is None:
        return [(sample["nll"], sample["tokens"]) for sample in cell.samples]
    pieces = []
    for sample in cell.samples:
        ends = sample["edges"][1:]
        inside = [i for i, end in enumerate(ends) if band[0] < end <= band[1]]
        pieces.append((math.fsum(sample["nll"][i] for i in inside), sum(sample["tokens"][i] for i in inside)))
    return pieces


def _found_by_length(pairing: Pairing, arms: Arms, basis: tuple[Retrieval, ...]) -> Iterator[Row]:
    """Retrieval over all tasks that say what is found, length by length."""
    lengths = sorted({length for task in basis for length in pairing.lengths(arms, task) if length is not None})
    for length in lengths:
        cells = [pairing.cells[key] for task in basis if (key := (arms, task.name, length)) in pairing.cells]
        yield _scored(pairing, arms, basis[0], length, cells)


def _claims(pairing: Pairing, basis: tuple[Retrieval, ...], source: Loss | None) -> list[Claim]:
    """One for each arm and each kind of prompts of which both folders have some."""
    asked = [
        (arms, about, to, task, evidence)
        for arms in pairing.arms
        for about, to, task, evidence in _evidence(pairing, arms, basis, source)
    ]
    # each measure of each claim has its share of the error, whichever way the difference goes
    intervals = sum(bool(one.found.size) + bool(one.read) for _, _, _, _, (one, _) in asked)
    found = []
    for arms, about, to, task, (before, after) in asked:
        gained = Comparison(one=after, other=before, error=ERROR / intervals)
        lost = Comparison(one=before, other=after, error=ERROR / intervals, back=gained)
        found.append(Claim(arms=arms, about=about, to=to, task=task, gained=gained, lost=lost))
    return found


Asked = tuple[str, int | None, Short | None, tuple[Evidence, Evidence]]


def _evidence(pairing: Pairing, arms: Arms, basis: tuple[Retrieval, ...], source: Loss | None) -> Iterator[Asked]:
    """What both folders showed of prompts within the original length, beyond it, and of short ones."""
    original = pairing.original_length
    met = [n for task in pairing.tasks for n in pairing.lengths(arms, task) if n is not None]
    for about in (WITHIN, BEYOND):
        lengths = [n for n in met if (n <= original) == (about == WITHIN)]
        asked = [(task.name, n) for task in basis for n in pairing.lengths(arms, task) if n in lengths]
        cells = [pairing.cells[arms, name, n] for name, n in asked]
        reads = _nats(pairing, arms, source, about)
        if cells or reads[0]:
            to = original if about == WITHIN else max(lengths, default=original)
            yield about, to, None, _both(arms, _scores(cells), reads)
    for task in pairing.tasks:
        if isinstance(task, Short) and (at := pairing.lengths(arms, task)):
            found = _scores([pairing.cells[arms, task.name, n] for n in at])
            if all(0 <= score <= 1 for side in found for score in side):  # what betting is made for
                yield SHORT, None, task, _both(arms, found, ({}, {}))


Nats = tuple[dict[Hashable, float], dict[Hashable, float]]


def _nats(pairing: Pairing, arms: Arms, source: Loss | None, about: str) -> Nats:
    """Window -> nats per token of both folders, within the original length or beyond it."""
    if source is None:
        return {}, {}
    original = pairing.original_length
    lengths = [n for n in pairing.lengths(arms, source) if n is not None]
    if not source.by_position:
        lengths = [n for n in lengths if (n <= original) == (about == WITHIN)]
    if not lengths:
        return {}, {}
    shared = pairing.cells[arms, source.name, lengths[-1]]
    if not source.by_position:
        return dict(nats_of(shared.one)), dict(nats_of(shared.other))
    low, high = (0, original) if about == WITHIN else (original, None)
    return dict(nats_of(shared.one, low, high)), dict(nats_of(shared.other, low, high))


def _both(arms: Arms, found: tuple[list[float], list[float]], reads: Nats) -> tuple[Evidence, Evidence]:
    """Evidence of both folders over the same prompts and windows."""
    return (
        Evidence(arm=arms[0], found=_column(found[0]), read=reads[0]),
        Evidence(arm=arms[1], found=_column(found[1]), read=reads[1]),
    )


def _column(values: list[float]) -> Array:
    """Scores [prompts, 1]: each prompt counts by itself, since the folders may not share whole rounds of them."""
    return np.asarray(values, dtype=np.float64).reshape(-1, 1)
