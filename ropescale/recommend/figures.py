"""What the cells of an evaluation say of one arm, for a table of arms that may have fewer samples than others."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

from ropescale.evals.decision.measures import basis_of, loss_task_of, scores, tasks_of
from ropescale.evals.report.findings import Share
from ropescale.evals.results import UNPATCHED, Arm, Results
from ropescale.evals.statistics import Estimate, perplexity, perplexity_ratio


def found_at(results: Results, arm: Arm, length: int) -> Share:
    """How many prompts of one length an arm answers."""
    cells = [results.cell(arm, task.name, length) for task in basis_of(tasks_of(results))]
    every = [score for cell in cells if cell is not None for score in scores(cell)]
    return Share(found=math.fsum(every), asked=len(every))


def perplexity_between(results: Results, arm: Arm, low: int, high: int) -> float | None:
    """Of text at positions from `low` to `high`, in tokens; None where none was read."""
    read = _windows(results, arm, low, high).values()
    tokens = sum(count for _, count in read)
    return perplexity(math.fsum(nats for nats, _ in read), tokens) if tokens else None


def change_between(results: Results, arm: Arm, low: int, high: int) -> Estimate | None:
    """The same over the unpatched model's, on the windows that both have read; None of the unpatched model."""
    theirs, ours = (_windows(results, one, low, high) for one in (UNPATCHED, arm))
    both = [window for window in ours if window in theirs and ours[window][1]]
    if arm == UNPATCHED or not both:
        return None
    before, after = ([one[window][0] for window in both] for one in (theirs, ours))
    return perplexity_ratio(before, after, [ours[window][1] for window in both], seed=results.settings.seed)


def _windows(results: Results, arm: Arm, low: int, high: int) -> Mapping[Hashable, tuple[float, int]]:
    """Window -> nats and tokens of its buckets that end after `low` and at `high` at the latest."""
    loss_task = loss_task_of(tasks_of(results))
    if loss_task is None or not loss_task.by_position:
        return {}
    cells = [results.cell(arm, loss_task.name, length) for length in sorted(results.settings.lengths, reverse=True)]
    cell = next(filter(None, cells), None)
    found: dict[Hashable, tuple[float, int]] = {}
    for one in [] if cell is None else cell.samples:
        buckets = zip(one["edges"][1:], one["nll"], one["tokens"], strict=True)
        inside = [(nats, count) for end, nats, count in buckets if low < end <= high]
        nats, count = math.fsum(nats for nats, _ in inside), sum(count for _, count in inside)
        found[str(one["document"]), str(one.get("window"))] = nats, count
    return found
