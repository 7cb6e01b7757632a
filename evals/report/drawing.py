"""Figures of the report as inline SVG, drawn by matplotlib in stand-in colours that become the page's variables.

So they follow the reader's light or dark, and the page's fonts. Series differ by marker and dash as well as colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ropescale.errors import RopescaleError
from ropescale.evals.report.wording import length_text

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter
except ImportError as error:
    raise RopescaleError(
        "report: matplotlib must be installed, got no package of that name; pip install 'ropescale[eval]'"
    ) from error

INK, FAINT = "#010101", "#020202"
SERIES = [f"#0300{i:02x}" for i in range(8)]  # 0 is the unpatched model
MARKERS = ["", "o", "s", "^", "D", "v", "P", "X"]
DASHES: list[Any] = [(0, (4, 2)), "-", "-", "-", "-", (0, (1, 1)), (0, (1, 1)), (0, (1, 1))]
DRAWING = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that layouts do not depend on the machine
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
HIGHEST = 1e6  # perplexity at which an axis ends: a curve beyond it leaves the frame, and the others stay legible
# the markers of matplotlib, for the legend
MARKS = {
    "": "",
    "o": '<circle cx="15" cy="5" r="3.4"/>',
    "s": '<rect x="11.8" y="1.8" width="6.4" height="6.4"/>',
    "^": '<path d="M15 1 19 8.4H11Z"/>',
    "D": '<path d="M15 1 19 5 15 9 11 5Z"/>',
    "v": '<path d="M15 9 11 1.6H19Z"/>',
    "P": '<path d="M13.4 1h3.2v2.4H19v3.2h-2.4V9h-3.2V6.6H11V3.4h2.4Z"/>',
    "X": '<path d="M11 3 13 1 15 3 17 1 19 3 17 5 19 7 17 9 15 7 13 9 11 7 13 5Z"/>',
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a panel; what is no positive number is not drawn."""

    series: int  # of `SERIES`
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes: perplexity (logarithmic) over tokens."""

    identifier: str  # of letters, digits, points and hyphens, unlike every other in the page
    label: str  # what a screen reader says
    curves: Sequence[Curve]
    original_length: int  # tokens: where the vertical line stands
    reach: int  # tokens: where the axis ends
    x_label: str
    lengths: Sequence[int] | None = None  # tokens: the ticks of a logarithmic axis; None for a linear one


def series_of(methods: Sequence[str]) -> dict[str, int]:
    """Method -> number of its colour and marker, the same in every figure; the first one is the unpatched model."""
    return {method: 1 + (i - 1) % (len(SERIES) - 1) if i else 0 for i, method in enumerate(dict.fromkeys(methods))}


def legend(series: Mapping[str, int]) -> str:
    """The list of methods with their line and marker."""
    items = []
    for name, i in series.items():
        dash = ' stroke-dasharray="6 3"' if i == 0 else ' stroke-dasharray="2 2"' if i > 4 else ""
        line = f'<line x1="0" y1="5" x2="30" y2="5" stroke-width="2"{dash}/>'
        items.append(
            f'<li><svg viewBox="0 0 30 10" aria-hidden="true" style="stroke: var(--s{i}); fill: var(--s{i})">{line}'
            f"{MARKS[MARKERS[i]]}</svg>{escape(name)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def bounds(panels: Sequence[Sequence[Curve]]) -> tuple[float, float]:
    """The smallest and largest value of several panels, with a margin, so that they can share an axis."""
    values = [y for curves in panels for curve in curves for y in curve.y if math.isfinite(y) and y > 0]
    if not values:
        return 1.0, 10.0
    low, high = math.log(min(*values, HIGHEST)), math.log(min(max(values), HIGHEST))
    margin = max(0.05 * (high - low), 0.05)
    return math.exp(low - margin), math.exp(high + margin)


def drawn(panel: Panel, limits: tuple[float, float]) -> str:
    """The panel as an SVG element, the same bytes every time."""
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(4.0, 2.9))
        axes = figure.subplots()
        for curve in panel.curves:
            pairs = zip(curve.x, curve.y, strict=True)
            points = [(x, min(y, 10 * HIGHEST)) for x, y in pairs if math.isfinite(y) and y > 0]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=SERIES[curve.series],
                linestyle=DASHES[curve.series],
                marker=MARKERS[curve.series] or None,
                markersize=3.8,
                linewidth=1.6,
            )
        axes.axvline(panel.original_length, color=FAINT, linewidth=1)
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(*limits)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_tick_text))
        if panel.lengths is None:
            axes.set_xlim(0, panel.reach)
            axes.xaxis.set_major_locator(FixedLocator(_position_ticks(panel.original_length, panel.reach)))
        else:
            axes.set_xscale("log", base=2)
            low, high = min([*panel.lengths, panel.original_length]), max([*panel.lengths, panel.original_length])
            axes.set_xlim(low / 1.1, high * 1.1)
            axes.xaxis.set_major_locator(FixedLocator(_thinned(panel.lengths)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_text(round(value))))
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel("perplexity")
        axes.grid(axis="y", which="major", color=FAINT, alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return _svg(figure, panel.label, panel.identifier)


def plotted(
    identifier: str, label: str, curves: Sequence[Curve], *, x_label: str, y_label: str, shares: bool = False
) -> str:
    """Curves over linear axes as an SVG element, the same bytes every time; `shares` of 1 read 0 to 100 %."""
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(4.0, 2.9))
        axes = figure.subplots()
        for curve in curves:
            few = len(curve.x) <= 40  # more markers would hide their line
            axes.plot(
                curve.x,
                curve.y,
                color=SERIES[curve.series],
                linestyle=DASHES[curve.series],
                marker=(MARKERS[curve.series] or None) if few else None,
                markersize=3.8,
                linewidth=1.6,
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if shares:
            axes.set_ylim(0, 1.03)  # room for markers at 100 %
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="y", which="major", color=FAINT, alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return _svg(figure, label, identifier)


def _tick_text(value: float, _: object) -> str:
    return f"{value:,g}" if value < 1e6 else f"{value:.0e}"


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


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values: powers of ten, with more between them where these are few."""
    powers = [10.0**i for i in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    width = math.log10(high / low)
    steps: tuple[float, ...] = (1, 2, 5) if width < 3 else (1,)
    if width < 0.8:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)
    if width < 0.3:
        steps = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9)
    ticks = [tick for power in powers for step in steps if low <= (tick := power * step) <= high]
    return ticks if len(ticks) <= 8 else ticks[:: math.ceil(len(ticks) / 8)]


def _svg(figure: Figure, label: str, identifier: str) -> str:
    """The figure as inline SVG with the page's colours and fonts."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**DRAWING, "svg.hashsalt": identifier}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].strip()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
    # two figures in one page must not share identifiers
    drawing = re.sub(r'\bid="([^"]+)"', rf'id="{identifier}-\1"', drawing)
    drawing = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{identifier}-", drawing)
    for colour, variable in [(INK, "ink"), (FAINT, "soft"), *((c, f"s{i}") for i, c in enumerate(SERIES))]:
        drawing = drawing.replace(colour, f"var(--{variable})")
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1; font-family: inherit", drawing)
    drawing = re.sub(r"\n\s*", "\n", drawing)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
