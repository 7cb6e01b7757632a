"""An evaluation that fits into a time: what is asked for less often, and what is left out, in which order.

First windows and samples, which widen intervals alone; then depths, tasks and methods; lengths last, because a length
that was not tried is a length of which nothing is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from ropescale.evals.plan import Options, Plan, unread
from ropescale.evals.tasks.base import defaults

FEWER_DEPTHS = (0.0, 0.5, 1.0)
# What `--quick` asks for, where nothing else is asked for: one look, in minutes
QUICK = {"tasks": defaults(quick=True), "windows": 1, "samples": 2, "depths": FEWER_DEPTHS}


def smaller(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Plans that cost less and less, each with what it changes, as the command line writes it."""
    options = plan.options
    flags: list[str] = []

    def step(said: str, **changed: object) -> tuple[str, Plan]:
        nonlocal options
        options = dataclasses.replace(options, **changed)  # type: ignore[arg-type]  # fields by their names
        flags[:] = [flag for flag in flags if flag.split()[0] != said.split()[0]] + [said]
        # what the tasks that are left do not read is not said either
        acting = [flag for flag in flags if not unread(options, {flag.split()[0].removeprefix("--")})]
        return " ".join(acting), plan.with_options(options)

    if options.windows > 1:
        yield step("--windows 1", windows=1)
    while options.samples > 1:
        fewer = max(1, options.samples // 4)
        yield step(f"--samples {fewer}", samples=fewer)
    if len(options.depths) > len(FEWER_DEPTHS):
        yield step(f"--depths {','.join(f'{depth:g}' for depth in FEWER_DEPTHS)}", depths=FEWER_DEPTHS)
    kept = tuple(task.name for task in options.asked if task.quick) or options.tasks[:1]
    for tasks in (kept, kept[:1]):
        if len(tasks) < len(options.task_names):
            yield step(f"--tasks {','.join(tasks)}", tasks=tasks)
    while len(options.methods) > 1:
        methods = options.methods[: len(options.methods) // 2]
        yield step(f"--methods {','.join(methods)}", methods=methods, knobs=_of(options, methods))
    lengths = plan.lengths
    while len(lengths) > 1:
        lengths = lengths[:-1]
        yield step(f"--lengths {','.join(map(str, lengths))}", lengths=lengths)


def _of(options: Options, methods: tuple[str, ...]) -> dict[str, object]:
    return {name: knobs for name, knobs in options.knobs.items() if name in methods}


def advice(plan: Plan, cost: Callable[[Plan], float], seconds: float) -> str:
    """What to add to a command so that it fits into so many seconds; empty if nothing does.

    `cost` gives the seconds that a plan takes.
    """
    return next((said for said, fewer in smaller(plan) if cost(fewer) <= seconds), "")
