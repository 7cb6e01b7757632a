"""Perplexities: by context length and by position, as charts and their figures; and those that are a table alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ropescale.evals.report.elements import comparison_table
from ropescale.evals.report.findings import Findings, position_perplexities
from ropescale.evals.report.tables import table_by_length
from ropescale.evals.report.wording import (
    arm_text,
    base_model,
    base_text,
    filled,
    group_text,
    length_text,
    method_text,
    panel_lengths,
    perplexity_text,
)
from ropescale.evals.results import UNPATCHED, Arm, Cell
from ropescale.evals.statistics import band_edges
from ropescale.evals.tasks.base import Loss
from ropescale.pages.chart import Axis, Chart, Curve, Mark, bounds, drawn, legend
from ropescale.pages.elements import Line, Value, details, paragraph, table, text

POINTS = 16  # of a curve at most: more would show the texts' own ups and downs
HIGHEST = 1e6  # perplexity at which an axis ends: a curve beyond it leaves the frame, and the others stay legible


def losses(findings: Findings, task: Loss) -> str:
    """The section of a perplexity."""
    if task.by_position:
        return _by_position(findings, task)
    made = comparison_table(f"{_noun(task)} by context length in tokens", table_by_length(findings, task), findings)
    if not task.curve:
        return _opening(findings, task) + made
    summary = f"The figures, with the change against {base_model(findings)} and its 95% interval over documents"
    return _opening(findings, task) + _by_length(findings, task) + details(summary, made)


def _opening(findings: Findings, task: Loss) -> str:
    return paragraph([filled(task.text or f"Token-weighted {task.noun} of {task.name}.", findings, task)])


def _noun(task: Loss) -> str:
    """What its figure is called, at the beginning of a caption."""
    return task.noun[:1].upper() + task.noun[1:]


def _series(findings: Findings) -> dict[str, int]:
    """Method -> number of its colour and symbol, the same in every figure; the first one is the unpatched model."""
    return {name: i for i, name in enumerate(dict.fromkeys(method_text(arm, findings) for arm in findings.arms))}


def _panel_title(findings: Findings, factor: float) -> str:
    said = group_text(findings.panels[factor], factor) if findings.groups else base_text(findings)
    return said[:1].upper() + said[1:]


def _figures(findings: Findings, panels: dict[float, Chart]) -> str:
    limits = bounds([*panels.values()], HIGHEST)
    figures = "".join(
        f"<figure><h3>{text(_panel_title(findings, factor))}</h3>"
        f"{drawn(replace(panel, y=replace(panel.y, limits=limits)))}</figure>"
        for factor, panel in panels.items()
    )
    keys = {name: Curve(series=number) for name, number in _series(findings).items()}
    return f'{legend(keys)}<div class="grid">{figures}</div>'


def _panel(
    findings: Findings, label: str, curves: Sequence[tuple[Arm, Sequence[float], Sequence[float]]], x: Axis
) -> Chart:
    """The chart of arms, each with its lengths or positions and its perplexities there."""
    series = _series(findings)
    return Chart(
        label=label,
        curves=[Curve(series=series[method_text(arm, findings)], x=xs, y=ys) for arm, xs, ys in curves],
        x=replace(x, written=lambda value: length_text(round(value))),
        y=Axis(label="perplexity", logarithmic=True),
        marks=[Mark(at=findings.settings.original_length)],
    )


def _thinned(lengths: Sequence[int]) -> list[int]:
    """Every length, or every second, third ... so that at most six stand beside one another; the last one stays."""
    step = math.ceil(len(lengths) / 6)
    return list(reversed(lengths[::-1][::step]))


def _position_ticks(original: int, reach: int) -> list[int]:
    """0, the original length and its multiples, thinned to what fits."""
    step = original if reach >= 2 * original else max(1, original // 2)
    while reach // step > 5:
        step *= 2
    return sorted({0, original, *range(step, reach + 1, step)} - ({original} if step > 2 * original else set()))


def _by_length(findings: Findings, task: Loss) -> str:
    panels = {}
    for factor, arms in findings.panels.items():
        reach = max((n for arm in arms[1:] or arms for n in findings.lengths(arm, task)), default=0)
        within = [n for n in findings.lengths(UNPATCHED, task) if n <= reach]
        curves, said = [], []
        for arm in arms:
            points = {n: cell.perplexity for n in within if (cell := findings.at(arm, task, n)) is not None}
            curves.append((arm, [*points], [*points.values()]))
            figures = ", ".join(f"{perplexity_text(y)} at {n:,}" for n, y in points.items())
            said.append(f"{arm_text(arm, findings)} {figures}")
        ends = sorted([*within, findings.settings.original_length])
        panels[factor] = _panel(
            findings,
            f"{_noun(task)} by context length, {group_text(arms, factor)}: " + "; ".join(said),
            curves,
            Axis(
                label="context length (tokens)",
                logarithmic=True,
                limits=(ends[0] / 1.1, ends[-1] * 1.1),
                ticks=_thinned(within),
            ),
        )
    return _figures(findings, panels)


def _by_position(findings: Findings, task: Loss) -> str:
    panels, tables = {}, []
    original = findings.settings.original_length
    for factor, length in panel_lengths(findings, task).items():
        arms = findings.panels[factor]
        curves, said = [], []
        for arm in arms:
            edges, values = _joined(findings.cell(arm, task, length), original)
            curves.append((arm, [(low + high) / 2 for low, high in pairwise(edges)], values))
            ends = f"{perplexity_text(values[0])} first, {perplexity_text(values[-1])} last"
            said.append(f"{arm_text(arm, findings)} {ends}")
        panels[factor] = _panel(
            findings,
            f"{_noun(task)}, {group_text(arms, factor)}: " + "; ".join(said),
            curves,
            Axis(label="position (tokens)", limits=(0, length), ticks=_position_ticks(original, length)),
        )
        name = group_text(arms, factor) if findings.groups else base_model(findings)
        made = _position_table(findings, task, arms, length)
        tables.append(details(f"The figures of {name}", made, long=True))
    return _opening(findings, task) + _figures(findings, panels) + "".join(tables)


def _joined(cell: Cell, original: int) -> tuple[list[int], list[float]]:
    """Edges and perplexities of a cell by position, neighbours joined while there are more than `POINTS`.

    Never across the original length, as long as that is an edge itself.
    """
    edges = list(cell.samples[0]["edges"])
    inside = edges.index(original) if original in edges else len(edges) - 1
    joined = next((n for n in (1, 2, 4, 8, 16, 32) if (len(edges) - 1) / n <= POINTS), 64)
    while inside % joined:
        joined //= 2
    kept = [*edges[:-1:joined], edges[-1]]
    samples = []
    for sample in cell.samples:
        nats, tokens = [0.0] * (len(kept) - 1), [0] * (len(kept) - 1)
        for i, (loss, count) in enumerate(zip(sample["nll"], sample["tokens"], strict=True)):
            place = min(i // joined, len(kept) - 2)
            nats[place] += loss
            tokens[place] += count
        samples.append({"edges": kept, "nll": nats, "tokens": tokens})
    return position_perplexities(replace(cell, samples=samples))


def _position_table(findings: Findings, task: Loss, arms: Sequence[Arm], length: int) -> str:
    columns = [_joined(findings.cell(arm, task, length), findings.settings.original_length) for arm in arms]
    lines = [
        Line(
            heads=[f"{low:,} to {high:,}"],
            values=[Value(text=perplexity_text(values[i])) for _, values in columns],
        )
        for i, (low, high) in enumerate(pairwise(columns[0][0]))
    ]
    cut = set(band_edges(findings.settings.original_length, length))
    ends = [high for _, high in pairwise(columns[0][0])]
    groups: list[list[Line]] = [[]]
    for end, line in zip(ends, lines, strict=True):
        groups[-1].append(line)
        if end in cut and end != ends[-1]:
            groups.append([])
    caption = f"{_noun(task)} in windows of {length:,} tokens"
    return table(caption, ["positions", *(arm_text(arm, findings) for arm in arms)], groups)
