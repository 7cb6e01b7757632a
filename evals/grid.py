"""`ropescale eval`: a model unpatched against methods at factors, over tasks and lengths.

The grid is a list of cells; each is appended to `results.jsonl` when it is finished, and a run that was stopped goes
on with the next one. Every arm gets the same rows in the same order, so that every comparison is paired. Until it is
decided, the cells grow round by round, those of the arms that can still win. Several processes that are given the same
folder divide the cells; every one ends when all are finished.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ropescale.console import Console
from ropescale.destinations import try_writer
from ropescale.errors import InvalidArgumentError
from ropescale.evals import budget, race, results
from ropescale.evals.bench import Bench
from ropescale.evals.cells import topped_up
from ropescale.evals.plan import Options, PlannedCell, Round
from ropescale.evals.provenance import session
from ropescale.evals.results import Key, Results
from ropescale.evals.workers import Worker

LONG = 3600.0  # seconds, from which a dry run says what to leave out
PAUSES = (0.2, 5.0)  # seconds between two looks at the cells of others, at first and at most


def run(options: Options, folder: Path, command: str) -> Results:
    """Run what is missing in `folder`, with a progress bar, and return all results.

    A kill loses at most the running cell. Under `accelerate launch` the rows of a cell are shared among the
    processes, and the first one writes.

    Raises:
        InvalidArgumentError: options that do not fit the model or one another, or a folder of other settings.
        CheckpointError: results that cannot be written.
        RopescaleError: the model returned something that is not a number.
    """
    with _quiet_harness():
        bench = Bench(options)
        bench.round = race.opening(options)
        first = bench.first
        # Patching is cheap, so every arm is tried before the first costly cell: a method that this model refuses
        # ends the run at once, and nothing is written.
        records = [bench.record(arm) for arm in options.arms]
        bench.try_tasks()
        _require_time(bench, folder)
        asked = {"cells": _order(bench), "until": options.until, "budget": options.budget, "limit": options.limit}
        joined: AbstractContextManager[Any] = nullcontext()
        if first:
            joined = Worker.joined(folder, bench.settings(), session(command, options), asked, records)
        with joined as worker:
            _run_rounds(bench, worker)
            if worker is not None:
                worker.end(_order(bench))
    return worker.found.first_windows() if worker is not None else results.read(folder)


def _order(bench: Bench) -> list[Key]:
    """The cells in the order in which one process runs them, what was done to the model first."""
    records = [(results.RECORD, arm.method, arm.factor, None) for arm in bench.options.arms]
    return [*records, *(cell.key for cell in bench.plan.cells)]


def print_cost(options: Options, console: Console, folder: Path) -> None:
    """The dry run: every cell with the tokens it reads, and how long all of them will take on this machine.

    Raises:
        InvalidArgumentError: whatever `run` would refuse, the folder among it, which stays as it is.
        CheckpointError: a folder that cannot be written.
    """
    try_writer(folder)
    with _quiet_harness():
        bench = Bench(options)
        for arm in options.arms:  # what the run refuses is refused here
            bench.record(arm)
        bench.try_tasks()
        results.begun(folder, bench.settings())
        rate = bench.operations_per_second()
    cells = bench.plan.cells
    title = f"{options.model}: {len(cells)} cells"
    table = Table("arm", "task", "length", "tokens", "estimate", box=None, title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    total = 0.0
    for cell in cells:
        seconds = bench.operations(cell) / rate
        total += seconds
        table.add_row(
            cell.arm.label,
            cell.task.name,
            "" if cell.length is None else f"{cell.length:,}",
            f"{cell.tokens:,.0f}" if cell.tokens else "?",
            _duration(seconds) if cell.tokens and bench.timed else "?",
        )
    console.print(table)
    if not bench.timed:
        console.print("how long it takes is known when it runs; nothing was run", highlight=False)
        return
    most = "at most" if options.until == "decided" else "about"
    console.print(
        f"{most} {_duration(total)} in all, if nothing can be shared between prompts; nothing was run", highlight=False
    )
    if total > LONG and (fewer := budget.advice(bench.plan, lambda plan: bench.seconds(plan, rate), LONG)):
        console.print(f"for less than {_duration(LONG)}: {fewer}", highlight=False, soft_wrap=True)


def fitted(options: Options, minutes: float, folder: Path) -> tuple[str, Options]:
    """The options that fit into so many minutes on this machine, and what was changed, as the command line writes it.

    A folder with results keeps what was chosen for it, so that the same command goes on where it was.

    Raises:
        InvalidArgumentError: not even the smallest evaluation fits, or a budget that is none.
        RopescaleError: whatever a grid raises before its first cell.
    """
    if not 0 < minutes < float("inf"):
        raise InvalidArgumentError(f"budget: must be minutes, above 0, got {minutes:g}; leave it out for no limit")
    if options.served:
        raise InvalidArgumentError(
            f"budget: is of the backend transformers, whose speed is measured before anything is run, got {minutes:g} "
            f"with {options.backend}; leave it out, and give fewer samples, windows or lengths"
        )
    with _quiet_harness():
        bench = Bench(options)
        rate = bench.operations_per_second()
        candidates = [("", bench.plan), *budget.smaller(bench.plan)]
        earlier = results.read(folder).settings if (folder / "run.json").exists() else None
        for said, fewer in candidates:
            if earlier and (fewer.knobs, fewer.lengths) == (earlier.tasks, earlier.lengths):
                return said, fewer.options
            if not earlier and bench.seconds(fewer, rate) <= minutes * 60:
                return said, fewer.options
        if earlier:  # of another command: starting it says so
            return "", options
        least = bench.seconds(candidates[-1][1], rate) / 60
    raise InvalidArgumentError(
        f"budget: must be at least {least:.2g} minutes on this machine, for {candidates[-1][0] or 'what was asked'}, "
        f"got {minutes:g}; give more, or a shorter context with lengths"
    )


def _run_rounds(bench: Bench, worker: Worker | None) -> None:
    """Round after round, until nothing is left to ask: one of a fixed grid, of a race until it is decided.

    What a round decides is known to the first process of a launch alone.
    """
    found = None if worker is None else worker.found
    console, options = Console(stderr=True, quiet=found is None), bench.options
    if options.until == "decided":
        console.print(
            f"rounds until it is decided, of at most {options.samples} samples and {options.windows} windows a cell; "
            f"results in {found.folder if found else ''}",
            highlight=False,
        )
    asked: Round | None = bench.round
    number = 0
    while asked is not None:
        bench.round, number = asked, number + 1
        missing = _missing(bench, found)
        if number > 1 and missing and not _affordable(bench, missing, found):
            console.print(race.out_of_time(options), highlight=False)
            return
        _run_missing(bench, worker, missing)
        if options.until == "finished":
            return
        following: Round | None = None
        if found is not None:
            decision = race.judged(found, bench.round)
            console.print(race.said(number, bench.round, decision), highlight=False, soft_wrap=True)
            following = race.following(options, bench.round, decision)
        asked = bench.agreed(following)


def _missing(bench: Bench, found: Results | None) -> dict[PlannedCell, int]:
    """The cells of the round that are not finished, with the sample or row from which on they are to run."""
    cells = [cell for cell in bench.plan.cells if cell.arm in bench.round.arms]
    finished = bench.agreed([None if found is None else bench.finished(found, cell) for cell in cells])
    return {cell: done for cell, done in zip(cells, finished, strict=True) if done is not None}


def _require_time(bench: Bench, folder: Path) -> None:
    """Refuse a time that does not hold the first round, where that is not over yet."""
    minutes = bench.options.budget
    if minutes is None or (folder / "run.json").exists():
        return
    if (needed := _minutes(bench, dict.fromkeys(bench.plan.cells, 0))) > minutes:
        raise InvalidArgumentError(
            f"budget: must be at least {needed:.2g} minutes on this machine, for the first round, got {minutes:g}; "
            f"give more, or a shorter context with lengths"
        )


def _affordable(bench: Bench, missing: Mapping[PlannedCell, int], found: Results | None) -> bool:
    """Whether the missing cells fit into what is left of the time, by what the folder's cells took so far."""
    fits = True
    if found is not None and bench.options.budget is not None:
        spent = sum(timing.seconds for timing in found.timings) / 60
        fits = spent + _minutes(bench, missing) <= bench.options.budget
    return bench.agreed(fits)


def _minutes(bench: Bench, missing: Mapping[PlannedCell, int]) -> float:
    """What cells take on this machine, roughly, each from a sample or row on."""
    return bench.operations_of(missing) / bench.operations_per_second() / 60


def _run_missing(bench: Bench, worker: Worker | None, missing: Mapping[PlannedCell, int]) -> None:
    """Run and append the cells that are missing and that no other process runs, with an estimate first and a bar
    meanwhile, until none is missing.
    """
    found = None if worker is None else worker.found
    console = Console(stderr=True, quiet=found is None)
    folder, all_cells = found.folder if found else "", len(bench.plan.cells)
    racing = bench.options.until == "decided"
    if not missing:
        if not racing:
            console.print(f"all {all_cells} cells are finished already; results in {folder}", highlight=False)
        return
    total = bench.operations_of(missing) or 1.0
    if not racing:
        about = f", about {_duration(60 * _minutes(bench, missing))}" if bench.timed else ""
        console.print(
            f"{len(missing)} cells to run ({all_cells - len(missing)} finished){about}; results in {folder}",
            highlight=False,
        )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=24 * 3600,  # seconds: a cell of a real model takes minutes
    ) as progress:
        bar = progress.add_task("", total=total)
        before = 0.0

        unfinished = Counter(cell.arm for cell in missing)

        def passed(cell: PlannedCell) -> None:
            nonlocal before
            before += bench.operations_of({cell: missing[cell]})
            progress.update(bar, completed=before)
            unfinished[cell.arm] -= 1
            if not (unfinished[cell.arm] or console.is_terminal or racing):  # a log has no bar
                say(f"{cell.arm.label}: finished")

        def say(sentence: str) -> None:
            progress.console.print(sentence, highlight=False, soft_wrap=True)

        patched, arm = ExitStack(), None
        with patched:
            for cell, first in _turns(bench, worker, missing, passed, say):
                if cell.arm != arm:
                    patched.close()
                    patched.enter_context(bench.patched(cell.arm))
                    arm = cell.arm
                progress.update(bar, description=cell.label)
                share = bench.operations_of({cell: missing[cell]})
                expected = max(1.0, cell.tokens * bench.share(cell, first))
                seen = [0]

                def advance(tokens: int, at: float = before, of: float = share / expected, up_to: float = share,
                            seen: list[int] = seen) -> None:  # fmt: skip
                    seen[0] += tokens
                    progress.update(bar, completed=at + min(up_to, seen[0] * of))

                bench.lm.on_progress = advance
                began = time.perf_counter()
                done = bench.cell(cell, first)
                if done is not None and worker is not None:
                    if first:
                        done = topped_up(worker.found.cells[done.key], done, bench.depths(cell.task))
                    worker.finish(done, seconds=time.perf_counter() - began, tokens=seen[0])
                passed(cell)


def _turns(
    bench: Bench,
    worker: Worker | None,
    missing: Mapping[PlannedCell, int],
    passed: Callable[[PlannedCell], None],
    say: Callable[[str], None],
) -> Iterator[tuple[PlannedCell, int]]:
    """The missing cells that this process has to run, each with the sample or row from which on.

    Those that nobody else has are the first; then it waits for the others, and runs those of a process that died.

    Args:
        bench: with the round that they are missing of.
        worker: of the first process of a launch.
        missing: the cells.
        passed: is told which another one has finished.
        say: a sentence on who is waited for.
    """
    left, said, pause = list(missing), "", PAUSES[0]
    while left:
        held = []
        for cell in left:
            taken, first = True, None
            if worker is not None:
                taken, first = worker.turn(cell.key, partial(bench.finished, worker.found, cell))
            taken, first = bench.agreed((taken, first))
            if not taken:
                held.append(cell)
            elif first is None:
                passed(cell)
            else:
                pause = PAUSES[0]
                yield cell, first
        if held and len(held) == len(left) and worker is not None:  # nothing was to be done
            if (sentence := _waiting(worker, held)) != said:
                say(said := sentence)
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])
        left = held


def _waiting(worker: Worker, held: list[PlannedCell]) -> str:
    """Who is waited for."""
    holder = worker.who(held[0].key)
    by = f" by {holder.label}" if holder else ""
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    return f"waiting for {held[0].label}{more}, which is run{by}; if that dies, it is run here"


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """The harness without its notices: what a user should know is said by the errors and the progress bar."""
    # Transformers too: that the unpatched model is read beyond its length is the point here
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers.generation")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
