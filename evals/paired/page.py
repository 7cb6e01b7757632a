"""comparison.html: one file that opens from disk, what is claimed first, then pictures and every figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ropescale.evals.paired.differences import Differences, Row
from ropescale.evals.paired.pairing import Arms
from ropescale.evals.paired.tables import COLUMNS, lines, settings
from ropescale.evals.paired.wording import arms_text, heading, left_out, reasons, rules, untold
from ropescale.evals.report.wording import MINUS, length_text
from ropescale.pages.chart import Axis, Chart, Curve, Mark, bounds, drawn
from ropescale.pages.document import document
from ropescale.pages.elements import Line, Value, details, paragraph, shown, table, text

CLOSING = "Written by ropescale from the results in both folders; comparison.md and comparison.json say the same."
WIDEST = 50.0  # percent of perplexity at which an axis ends, so that one bad length leaves the others legible


def page(made: Differences) -> str:
    """The whole comparison as HTML."""
    one, other = made.pairing.folders
    sentences = "".join(f"<li>{text(sentence)}</li>" for sentence in reasons(made))
    rest = "".join(f"<li>{text(sentence)}</li>" for sentence in untold(made))
    opening = [
        f'<ul class="reasons">{sentences}</ul>' if sentences else "",
        details("What cannot be told, with its intervals", f'<ul class="reasons">{rest}</ul>') if rest else "",
        paragraph(left_out(made), "note"),
    ]
    return document(
        title=f"ropescale: {shown(other.folder.name, 50)} against {shown(one.folder.name, 50)}",
        kicker=f"ropescale report · A: {shown(one.folder, 80)} · B: {shown(other.folder, 80)}",
        heading=heading(made),
        opening="\n".join(filter(None, opening)),
        sections={
            "lengths": ("Differences by length", _figures(made)),
            "figures": ("Every figure", _tables(made)),
            "settings": ("What differs besides", _settings(made)),
            "rules": ("How it was compared", paragraph(rules(made))),
        },
        closing=CLOSING,
    )


def _figures(made: Differences) -> str:
    """For each pair of arms, what is found and how text is read, by length, with intervals."""
    found = {arms: chart for arms, rows in made.by_length.items() if (chart := _found(made, arms, rows))}
    read = {arms: chart for arms in made.pairing.arms if (chart := _read(made, arms))}
    parts = []
    for charts, said in (
        (found, "What is found, in percentage points: above 0 B finds more than A."),
        (read, "Perplexity, as a change in percent: below 0 B reads text better than A."),
    ):
        if charts:
            limits = bounds([*charts.values()], WIDEST if charts is read else math.inf)
            figures = "".join(
                f"<figure><h3>{text(arms_text(made.pairing, arms))}</h3>{drawn(_within(chart, limits))}</figure>"
                for arms, chart in charts.items()
            )
            parts.append(f'{paragraph([said])}<div class="grid">{figures}</div>')
    note = "Points: the difference on the samples that both folders have. Bars: its 95% interval, each for itself. "
    note += "Dashed: the original length."
    return "".join([*parts, paragraph([note], "note")]) if parts else ""


def _found(made: Differences, arms: Arms, rows: Sequence[Row]) -> Chart | None:
    return _chart(made, arms, rows, "what is found (points)", lambda value: 100 * value, lambda row: row.length or 0)


def _read(made: Differences, arms: Arms) -> Chart | None:
    if made.source is None:
        return None
    rows = made.of(arms, made.source)
    return _chart(
        made,
        arms,
        rows,
        "perplexity (%)",
        lambda ratio: 100 * (ratio - 1),
        lambda row: row.band[1] if row.band else row.length or 0,
    )


def _chart(
    made: Differences,
    arms: Arms,
    rows: Sequence[Row],
    label: str,
    scaled: Callable[[float], float],
    at: Callable[[Row], int],
) -> Chart | None:
    """Points with bars: a difference by length, and its interval."""
    known = [row for row in rows if math.isfinite(row.change.value)]
    if not known:
        return None
    ends = sorted({at(row) for row in known} | {made.pairing.original_length})
    bars = [
        Curve(series=0, x=[at(row)] * 2, y=[scaled(row.change.low), scaled(row.change.high)])
        for row in known
        if math.isfinite(row.change.low)
    ]
    points = Curve(series=1, x=[at(row) for row in known], y=[scaled(row.change.value) for row in known])
    said = ", ".join(f"{scaled(row.change.value):+.1f} at {at(row):,}" for row in known)
    return Chart(
        label=f"B against A, {arms_text(made.pairing, arms)}, {label}: {said}",
        curves=[*bars, points],
        x=Axis(
            label="length (tokens)",
            logarithmic=True,
            limits=(ends[0] / 1.3, ends[-1] * 1.3),
            ticks=ends[:: max(1, math.ceil(len(ends) / 6))],
            written=lambda value: length_text(round(value)),
        ),
        y=Axis(label=label, written=lambda value: f"{value:+g}".replace("-", MINUS) if value else "0"),
        marks=[Mark(at=made.pairing.original_length), Mark(at=0.0, level=True)],
    )


def _within(chart: Chart, limits: tuple[float, float]) -> Chart:
    """The chart with the limits that charts beside it have."""
    axis = Axis(label=chart.y.label, limits=limits, written=chart.y.written)
    return Chart(label=chart.label, curves=chart.curves, x=chart.x, y=axis, marks=chart.marks)


def _tables(made: Differences) -> str:
    """A table for each pair of arms; folded where there are several."""
    found = {arms: rows for arms in made.pairing.arms if (rows := lines(made, arms))}
    tables = {}
    for arms, rows in found.items():
        groups: dict[str, list[Line]] = {}
        for line in rows:
            values = [Value(text=cell) for cell in line.cells[2:]]
            groups.setdefault(line.task, []).append(Line(heads=[line.task, line.at], values=values))
        name = arms_text(made.pairing, arms)
        tables[name] = table(f"{name}: B against A, with the 95% interval", COLUMNS, [*groups.values()])
    if len(tables) == 1:
        return next(iter(tables.values()))
    return "".join(details(name, made_of) for name, made_of in tables.items())


def _settings(made: Differences) -> str:
    unlike = settings(made)
    if not unlike:
        return paragraph(["All settings, versions and the machine are the same."])
    rows = [
        Line(heads=[name], values=[Value(text=one, css="text"), Value(text=other, css="text")])
        for name, one, other in unlike
    ]
    return table("Settings, versions and machine that differ", ["", "A", "B"], [rows])
