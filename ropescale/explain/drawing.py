"""Line charts as inline SVG, written by hand: colours are variables of the page, so they follow light and dark."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 350, 14, 186  # of the frame within
COLOURS = 8  # of the page: --s0 ... --s7
DASHES = ("", "7 3", "2 3", "9 3 2 3")  # one after the other as colours come round
OVER = "6 6"  # of a line that lies on another


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line; a nan breaks it. `low` and `high` are the band that it runs through, if it has one."""

    series: int  # 0 is the model as pretrained
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    over: bool = False  # lies on an earlier one: dashed, so that both are seen


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A straight line across the frame with a word on it."""

    at: float
    word: str
    level: bool = False  # at a y, from left to right; otherwise at an x


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One set of axes."""

    label: str  # what a screen reader says
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    marks: Sequence[Mark] = ()
    limits: tuple[float, float] | None = None  # of y, where several charts share them
    logarithmic: bool = False  # the y axis


def number(value: float) -> str:
    """A number as short as three digits allow, whole ones in full."""
    if not math.isfinite(value):
        return "none" if math.isnan(value) else "∞"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    if value == round(value) and abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def bounds(charts: Sequence[Chart]) -> tuple[float, float]:
    """The lowest and highest value of several charts with a margin, so that they can share an axis."""
    values = [
        value
        for chart in charts
        for curve in chart.curves
        for row in (curve.y, curve.low, curve.high)
        for value in row
        if math.isfinite(value)
    ]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def drawn(chart: Chart) -> str:
    """The chart as an SVG element."""
    right = max(1, *(value for curve in chart.curves for value in curve.x))  # the x axis begins at 0
    if chart.logarithmic:
        values = [y for curve in chart.curves for y in curve.y if math.isfinite(y)]
        values += [mark.at for mark in chart.marks if mark.level]
        low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.15
    else:
        low, high = chart.limits or bounds([chart])

    def x_of(value: float) -> float:
        return LEFT + value / right * (RIGHT - LEFT)

    def y_of(value: float) -> float:
        height = math.log10(value) if chart.logarithmic else value
        return BOTTOM - (height - low) / (high - low) * (BOTTOM - TOP)

    parts = []
    ticks = _powers(low, high) if chart.logarithmic else _ticks(low, high)
    for tick in ticks:
        y = y_of(tick)
        css = ' class="zero"' if tick == 0 else ""
        parts.append(f'<path{css} d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(tick)}</text>')
    for tick in _ticks(0, right):
        parts.append(f'<text x="{x_of(tick):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{_tick_text(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    for curve in chart.curves:
        parts += _line(curve, [x_of(x) for x in curve.x], y_of)
    lines = [y_of(tick) for tick in ticks] + [y_of(mark.at) for mark in chart.marks if mark.level]
    words: list[float] = []  # where those of level lines stand, all at the right end
    for i, mark in enumerate(chart.marks):
        at = y_of(mark.at) if mark.level else x_of(mark.at)
        if mark.level:
            words.append(_free(at, lines, words))
        parts.append(_mark(mark, at, words[-1] if mark.level else TOP + 10 + 15 * i))
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.x_label)}</text>')
    turn = f"translate(13 {(TOP + BOTTOM) / 2}) rotate(-90)"
    parts.append(f'<text transform="{turn}" text-anchor="middle">{escape(chart.y_label)}</text>')
    return (
        f'<svg class="chart" role="img" aria-label="{escape(chart.label)}" viewBox="0 0 {WIDTH} {HEIGHT}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def legend(names: Sequence[tuple[int, str]], over: Collection[str] = ()) -> str:
    """Which line is which: series and name; those `over` an earlier line are dashed."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 34 10" aria-hidden="true"><path class="line" d="M0 5H34" '
        f"{_stroke(series, name in over)}/></svg>{escape(name)}</li>"
        for series, name in names
    )
    return f'<ul class="legend">{items}</ul>'


def _colour(series: int) -> str:
    """The colour of a series, for the style sheet; the first is kept for the model as pretrained."""
    return f'style="--series: var(--s{1 + (series - 1) % (COLOURS - 1) if series else 0})"'


def _stroke(series: int, over: bool = False) -> str:
    """The colour and dash of a series: the dash changes when colours come round, and over another line."""
    dash = OVER if over else DASHES[(series - 1) // (COLOURS - 1) % len(DASHES)] if series else ""
    return _colour(series) + (f' stroke-dasharray="{dash}"' if dash else "")


def _line(curve: Curve, xs: Sequence[float], y_of: Callable[[float], float]) -> list[str]:
    """The band of a curve and the curve, in as many pieces as there are between its gaps."""
    parts = []
    pieces: list[list[int]] = [[]]
    for i, y in enumerate(curve.y):
        if math.isfinite(y):
            pieces[-1].append(i)
        elif pieces[-1]:
            pieces.append([])
    for piece in filter(None, pieces):
        if curve.low:
            edge = [(xs[i], y_of(curve.high[i])) for i in piece] + [(xs[i], y_of(curve.low[i])) for i in piece[::-1]]
            parts.append(f'<path class="band" {_colour(curve.series)} d="M{_points(edge)}Z"/>')
        line = _points([(xs[i], y_of(curve.y[i])) for i in piece])
        if len(piece) == 1:  # a line of length 0 with round ends is a dot
            parts.append(f'<path class="line dot" {_colour(curve.series)} d="M{line}h0"/>')
        else:
            parts.append(f'<path class="line" {_stroke(curve.series, curve.over)} d="M{line}"/>')
    return parts


def _points(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _mark(mark: Mark, at: float, height: float) -> str:
    """The line of a mark, and its word beside it at that height."""
    if mark.level:
        line, x, y, anchor = f"M{LEFT} {at:.1f}H{RIGHT}", RIGHT - 2.0, height, "end"
    else:
        anchor = "end" if at > (LEFT + RIGHT) / 2 else "start"
        line, x, y = f"M{at:.1f} {TOP}V{BOTTOM}", at + (-4 if anchor == "end" else 4), height
    return (
        f'<path class="mark" d="{line}"/>'
        f'<text class="word" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(mark.word)}</text>'
    )


def _free(at: float, lines: Sequence[float], words: Sequence[float]) -> float:
    """Where the word of a level line stands, above or below: where it meets no other word or line, or fewer."""
    places = [at - 4, at + 12]  # of its foot; letters are about 9 high
    crossed = [
        sum(abs(place - word) < 10 for word in words)
        + sum(place - 10 < line < place + 3 for line in lines if line != at)
        for place in places
    ]
    return places[crossed[0] > crossed[1]]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, four to eight of them."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick_text(value: float) -> str:
    """A number for an axis, where there is no room for zeros."""
    if abs(value) < 1e4:
        return number(value)
    return f"{value / 1e3:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between two exponents."""
    return [10.0**i for i in range(math.ceil(low), math.floor(high) + 1)]
