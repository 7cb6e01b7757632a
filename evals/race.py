"""Rounds of an evaluation: how many prompts and windows are asked next, and of which arms.

A fixed grid is one round of everything. A race adds prompts round by round to the arms that can still win, until what
was asked is decided. What a round finds is judged on its own prompts and those before it, not on more that an earlier
run has left in the folder: so a race that was stopped takes the same turns when it goes on. Knows results and
decisions, no model.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from operator import attrgetter

from ropescale.evals.decision import decide
from ropescale.evals.decision.verdict import Decision
from ropescale.evals.plan import Options, Round
from ropescale.evals.report.wording import dropped_text
from ropescale.evals.results import Arm, Cell, Results

FIRST = 2  # samples of the first round
WINDOWS = 2  # windows of text for each sample
GROWTH = 0.4  # of the samples so far that a round adds at least
# The most that a race asks where nothing else is said: what tells 60 from 80 % apart among seven arms
RACE = {"samples": 100, "windows": 60}


def opening(options: Options) -> Round:
    """The first round of an evaluation, which is the only one of a fixed grid."""
    arms = tuple(options.arms)
    if options.until == "finished":
        return Round(arms=arms, samples=options.samples, windows=options.windows)
    return _round(options, arms, FIRST)


def following(options: Options, over: Round, decision: Decision) -> Round | None:
    """The round after one that is over; None where nothing is left to ask, or it is decided.

    An arm that is out of the race stays out. One that is not made for the goal is not in it, once its round is over.
    """
    everything = over.samples >= options.samples and over.windows >= options.windows
    if everything or decision.settled:
        return None
    winning = {standing.arm for standing in decision.standings if standing.can_win}
    arms = tuple(arm for arm in over.arms if arm in winning)
    if len(arms) < 2:
        return None
    return _round(options, arms, over.samples + max(2, int(GROWTH * over.samples)))


def judged(results: Results, over: Round) -> Decision:
    """What the prompts of a round and of those before it decide."""
    return decide(_first(results, over))


def said(number: int, over: Round, decision: Decision) -> str:
    """The line on a round that is over: what was asked, who goes on, and who is out by which figure."""
    out = [
        f"{one.arm.label} ({dropped_text(one.dropped_by, one.arm, attrgetter('label'))})"
        for one in decision.standings
        if one.arm in over.arms and one.dropped_by is not None
    ]
    left = [one.arm.label for one in decision.standings if one.arm in over.arms and one.can_win]
    dropped = f"; out: {'; '.join(out)}" if out else ""
    return f"round {number} ({over.samples} samples, {over.windows} windows): {', '.join(left)}{dropped}"


def out_of_time(options: Options) -> str:
    """The line where no further round fits."""
    return f"the next round does not fit into {options.budget:g} minutes; the same command with more goes on"


def _round(options: Options, arms: tuple[Arm, ...], samples: int) -> Round:
    return Round(arms=arms, samples=min(samples, options.samples), windows=min(WINDOWS * samples, options.windows))


def _first(results: Results, over: Round) -> Results:
    """The results with no more samples and windows than a round asks."""
    tasks = {
        name: {**knobs, "windows": over.windows} if "windows" in knobs else knobs
        for name, knobs in results.settings.tasks.items()
    }
    settings = dataclasses.replace(results.settings, tasks=tasks)
    fewer = Results(results.folder, settings, results.sessions, results.cells, results.timings).first_windows()
    fewer.cells = {key: _first_samples(cell, over.samples) for key, cell in fewer.cells.items()}
    return fewer


def _first_samples(cell: Cell, samples: int) -> Cell:
    """A cell with the first samples of each depth; whole where it has no length."""
    if cell.length is None or cell.of_losses:
        return cell
    had: Counter[object] = Counter()
    kept = []
    for sample in cell.samples:
        depth = sample.get("depth")
        had[depth] += 1
        if had[depth] <= samples:
            kept.append(sample)
    return dataclasses.replace(cell, samples=kept)
