"""Retrieval as heat maps: a task by depth and length, or the tasks of a group by length."""

from __future__ import annotations

from collections.abc import Sequence

from ropescale.evals.report.elements import Heat, comparison_table, heat_map, identifier
from ropescale.evals.report.findings import Findings, has_exact, share
from ropescale.evals.report.tables import table_by_length
from ropescale.evals.report.wording import arm_text, count_text, interval_text, length_text, rate_text
from ropescale.evals.results import UNPATCHED, Cell
from ropescale.evals.tasks.base import Retrieval
from ropescale.pages.elements import Line, Raw, Value, details, paragraph, shown, table

DEPTHS = (
    "Columns: length of the prompt in tokens, reply included; rows: how deep what is asked for lies. Each cell: "
    "average score of the prompts, and their scores added up, of how many."
)
TASKS = (
    "Columns: length of the prompt in tokens, reply included. Each cell: average score of the prompts, and beneath it "
    "that by the exact rule, or their scores added up, of how many."
)


def sections(findings: Findings) -> dict[str, tuple[str, str]]:
    """Identifier -> title and HTML: a section for each group of tasks, and for each task without one."""
    together: dict[str, list[Retrieval]] = {}
    for task in findings.retrieval:
        together.setdefault(task.group.title if task.group else task.name, []).append(task)
    found = {}
    for name, tasks in sorted(together.items(), key=lambda item: min(task.place for task in item[1])):
        place, group = identifier(name), tasks[0].group
        if group is not None:
            found[place] = (group.title, _by_task(findings, tasks, group.title, group.text))
        elif depths := _depths_of(findings, tasks[0]):
            found[place] = (tasks[0].heading, _by_depth(findings, tasks[0], depths))
        else:
            found[place] = (tasks[0].heading, _by_task(findings, tasks, tasks[0].heading, tasks[0].text or TASKS))
    return found


def _depths_of(findings: Findings, task: Retrieval) -> list[float]:
    """The depths that its prompts have."""
    samples = [one for _, cell in findings.cells(UNPATCHED, task) for one in cell.samples]
    return sorted({one["depth"] for one in samples if one.get("depth") is not None})


def _by_depth(findings: Findings, task: Retrieval, depths: Sequence[float]) -> str:
    lengths = findings.lengths(UNPATCHED, task)
    named = [*((rate_text(depth), depth) for depth in depths), ("all", None)]
    maps, lines = [], []
    for arm in findings.arms:
        cells = [findings.at(arm, task, n) for n in lengths]
        ran = [cell for cell in cells if cell is not None]
        rows = {name: [_heat(cell, depth) for cell in ran] for name, depth in named}
        maps.append(heat_map(arm_text(arm, findings), "depth", [length_text(cell.length or 0) for cell in ran], rows))
        lines.append([_line(arm_text(arm, findings), name, cells, depth) for name, depth in named])
    counts = _counts(f"{task.name}: found of asked", "depth", lengths, lines)
    scores = comparison_table(
        f"{task.name}: scores over all depths, by length in tokens", table_by_length(findings, task), findings
    )
    return (
        paragraph([task.text or DEPTHS])
        + _grid(maps, len(lengths), 5, 8)
        + details("Counts and 95% intervals (Wilson)", counts, long=True)
        + details("All depths together, also by the exact rule (the number as a whole)", scores)
    )


def _counts(what: str, corner: str, lengths: Sequence[int], lines: Sequence[Sequence[Line]]) -> str:
    columns = ["arm", corner, *map(length_text, lengths)]
    return table(f"{what} with the Wilson interval, by length in tokens", columns, lines)


def _grid(maps: Sequence[str], lengths: int, many: int, more: int) -> str:
    """Heat maps beside one another, in wider columns from `many` lengths and still wider ones from `more`."""
    css = "grid wide" if lengths >= more else "grid" if lengths >= many else "grid narrow"
    return f'<div class="{css}">{"".join(maps)}</div>'


def _heat(cell: Cell, depth: float | None) -> Heat | None:
    found = share(cell, "score", depth)
    if not found.asked:
        return None
    said = f"{count_text(found)}, 95% interval {interval_text(found)}"
    return Heat(rate=found.rate, small=count_text(found), said=said)


def _line(arm: str, name: str, cells: Sequence[Cell | None], depth: float | None = None) -> Line:
    """Counts and intervals, cell by cell."""
    values: list[Value | Raw] = []
    for cell in cells:
        found = None if cell is None else share(cell, "score", depth)
        values.append(Value(text="") if found is None else Value(text=count_text(found), small=[interval_text(found)]))
    return Line(heads=[arm, name], values=values)


def _by_task(findings: Findings, tasks: Sequence[Retrieval], title: str, said: str) -> str:
    lengths = sorted({n for task in tasks for n in findings.lengths(UNPATCHED, task)})
    maps, lines = [], []
    for arm in findings.arms:
        ran = sorted({n for task in tasks for n in findings.lengths(arm, task)})
        rows: dict[str, list[Heat | None]] = {
            shown(task.name, 40): [_task_heat(findings.at(arm, task, n)) for n in ran] for task in tasks
        }
        own = [
            _line(arm_text(arm, findings), shown(task.name, 40), [findings.at(arm, task, n) for n in lengths])
            for task in tasks
        ]
        if set(findings.basis) == set(tasks) and len(tasks) > 1:
            averages = findings.row(arm).averages
            rows["average"] = [_average_heat(averages.get(n)) for n in ran]
            rates = [Value(text=rate_text(averages.get(n))) for n in lengths]
            own.append(Line(heads=[arm_text(arm, findings), "average"], values=rates))
        maps.append(heat_map(arm_text(arm, findings), "task", [*map(length_text, ran)], rows, css="named"))
        lines.append(own)
    missing = [shown(task.name, 40) for task in tasks if findings.lengths(UNPATCHED, task) != lengths]
    counts = _counts(f"{title}: prompts' scores added up, of how many,", "task", lengths, lines)
    return (
        paragraph([said, *([f"Not at every length: {', '.join(missing)}."] if missing else [])])
        + _grid(maps, len(lengths), 0, 5)
        + details("Counts, 95% intervals (Wilson) and averages", counts, long=True)
    )


def _task_heat(cell: Cell | None) -> Heat | None:
    if cell is None:
        return None
    found = share(cell)
    said = f"{count_text(found)}, 95% interval {interval_text(found)}"
    exact = rate_text(share(cell, "exact").rate) if has_exact(cell) else count_text(found)
    return Heat(rate=found.rate, small=exact, said=f"{said}; by the exact rule {exact}") if found.asked else None


def _average_heat(rate: float | None) -> Heat | None:
    return None if rate is None else Heat(rate=rate, small="", said="average over the tasks")
