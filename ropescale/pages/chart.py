"""Line charts as inline SVG: colours are variables of the page, so they follow light and dark, fonts are the page's.

Written by hand: pages load and run nothing, hold dozens of charts, and are made where no library that draws is
installed. Series differ by colour, by the symbol at their points where these are few, and by dash when
colours come round.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ropescale.pages.elements import number
from ropescale.pages.style import COLOURS

WIDTH, HEIGHT = 368, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 350, 14, 186  # of the frame within
DASHES = ("", "7 3", "2 3", "9 3 2 3")  # one after the other as colours come round
OVER = "6 6"  # of a line that lies on another
FEW = 40  # points of a line: more symbols would hide it
# of series 1, 2 ..., from the point that they stand at: circle, square, triangle, diamond, triangle, plus, cross
SYMBOLS = (
    "m-2.8 0a2.8 2.8 0 1 0 5.6 0a2.8 2.8 0 1 0-5.6 0",
    "m-2.6-2.6h5.2v5.2h-5.2z",
    "m0-3.4 3.4 6.2h-6.8z",
    "m0-3.5 3.5 3.5-3.5 3.5-3.5-3.5z",
    "m0 3.4 3.4-6.2h-6.8z",
    "m-1.2-3.4h2.4v2.2h2.2v2.4h-2.2v2.2h-2.4v-2.2h-2.2v-2.4h2.2z",
    "m0-1.7 1.7-1.7 1.7 1.7-1.7 1.7 1.7 1.7-1.7 1.7-1.7-1.7-1.7 1.7-1.7-1.7 1.7-1.7-1.7-1.7 1.7-1.7z",
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line; a nan breaks it. `low` and `high` are the band that it runs through, if it has one."""

    series: int  # 0 is the model as pretrained
    x: Sequence[float] = ()
    y: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    over: bool = False  # lies on an earlier one: dashed, so that both are seen

    @property
    def colour(self) -> int:
        """Which of the page's colours it has: the first is kept for the model as pretrained, the others come round."""
        return 1 + (self.series - 1) % (len(COLOURS) - 1) if self.series else 0

    @property
    def dash(self) -> str:
        """Lengths of stroke and gap in pixels; none for a whole line."""
        return (
            OVER if self.over else DASHES[(self.series - 1) // (len(COLOURS) - 1) % len(DASHES)] if self.series else ""
        )


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A straight line across the frame, with a word on it where it has one."""

    at: float
    word: str = ""
    level: bool = False  # at a y, from left to right; otherwise at an x


def tick_text(value: float) -> str:
    """A number for an axis, where there is no room for zeros."""
    if abs(value) < 1e4:
        return number(value)
    return f"{value / 1e3:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is measured along one side of the frame."""

    label: str
    limits: tuple[float, float] | None = None  # what its curves need if not given: x from 0, y with a margin
    logarithmic: bool = False
    ticks: Sequence[float] = ()  # round numbers if not given
    written: Callable[[float], str] = tick_text

    def holds(self, value: float) -> bool:
        """Whether a value can stand on it."""
        return math.isfinite(value) and (value > 0 or not self.logarithmic)

    def height(self, value: float) -> float:
        """By which values are apart: their own, or their logarithm."""
        return math.log10(value) if self.logarithmic else value

    def scale(self, limits: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
        """Where a value stands whose limits stand at `start` and `end`; what is far beyond them stands near them."""
        low, high = map(self.height, limits)
        return lambda value: start + min(max((self.height(value) - low) / (high - low), -1.0), 2.0) * (end - start)

    def ticks_within(self, limits: tuple[float, float]) -> Sequence[float]:
        """Its ticks, or round numbers between two values."""
        return self.ticks or (_log_ticks(*limits) if self.logarithmic else _ticks(*limits))


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One set of axes."""

    label: str  # what a screen reader says
    curves: Sequence[Curve]
    x: Axis
    y: Axis
    marks: Sequence[Mark] = ()


def bounds(charts: Sequence[Chart], highest: float = math.inf) -> tuple[float, float]:
    """The lowest and highest value of several charts of one kind with a margin, so that they can share an axis.

    What is higher than `highest` counts as that: it leaves the frame, and the others stay legible.
    """
    axis = charts[0].y
    values = [
        min(value, highest)
        for chart in charts
        for row in (
            [mark.at for mark in chart.marks if mark.level],
            *(row for curve in chart.curves for row in (curve.y, curve.low, curve.high)),
        )
        for value in row
        if axis.holds(value)
    ]
    if axis.logarithmic:
        low, high = math.log(min(values, default=1.0)), math.log(max(values, default=10.0))
        margin = max(0.05 * (high - low), 0.05)
        return math.exp(low - margin), math.exp(high + margin)
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def drawn(chart: Chart) -> str:
    """The chart as an SVG element."""
    across = chart.x.limits or (0, max(1, *(value for curve in chart.curves for value in curve.x)))
    limits = chart.y.limits or bounds([chart])
    x_of, y_of = chart.x.scale(across, LEFT, RIGHT), chart.y.scale(limits, BOTTOM, TOP)
    parts = []
    ticks = chart.y.ticks_within(limits)
    for tick in ticks:
        y = y_of(tick)
        css = ' class="zero"' if tick == 0 else ""
        parts.append(f'<path{css} d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{chart.y.written(tick)}</text>')
    for tick in chart.x.ticks_within(across):
        x = f'x="{x_of(tick):.1f}" y="{BOTTOM + 17}"'
        parts.append(f'<text {x} text-anchor="middle">{chart.x.written(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    lines = [line for curve in chart.curves for line in _line(curve, chart.y, x_of, y_of)]
    if any(value > limits[1] for curve in chart.curves for value in curve.y):  # what leaves the frame is cut off there
        frame = f"{LEFT} {TOP} {RIGHT - LEFT} {BOTTOM - TOP}"
        box = 'x="{}" y="{}" width="{}" height="{}"'.format(*frame.split())
        lines = [f'<svg aria-hidden="true" {box} viewBox="{frame}">', *lines, "</svg>"]
    parts += lines
    levels = [y_of(tick) for tick in ticks] + [y_of(mark.at) for mark in chart.marks if mark.level]
    words: list[float] = []  # where those of level lines stand, all at the right end
    for i, mark in enumerate(chart.marks):
        at = y_of(mark.at) if mark.level else x_of(mark.at)
        if mark.level:
            words.append(_free(at, levels, words))
        parts.append(_mark(mark, at, words[-1] if mark.level else TOP + 10 + 15 * i))
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.x.label)}</text>')
    turn = f"translate(13 {(TOP + BOTTOM) / 2}) rotate(-90)"
    parts.append(f'<text transform="{turn}" text-anchor="middle">{escape(chart.y.label)}</text>')
    return (
        f'<svg class="chart" role="img" aria-label="{escape(chart.label)}" viewBox="0 0 {WIDTH} {HEIGHT}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def legend(curves: Mapping[str, Curve]) -> str:
    """Which line is which, by name."""
    items = "".join(
        '<li><svg class="key" viewBox="0 0 34 10" aria-hidden="true">'
        f'<path class="line" d="M0 5H34" {_stroke(curve)}/>{_symbols(curve, [(17, 5)])}</svg>{escape(name)}</li>'
        for name, curve in curves.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _colour(curve: Curve) -> str:
    """The colour of a curve, for the style sheet."""
    return f'style="--series: var(--s{curve.colour})"'


def _stroke(curve: Curve) -> str:
    return _colour(curve) + (f' stroke-dasharray="{curve.dash}"' if curve.dash else "")


def _symbols(curve: Curve, points: Sequence[tuple[float, float]]) -> str:
    """The symbol of a curve at its points, where it has so few of them that it carries any."""
    if not curve.series or len(curve.x) > FEW:
        return ""
    shape = SYMBOLS[curve.colour - 1]
    return f'<path class="symbol" {_colour(curve)} d="{"".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in points)}"/>'


def _line(curve: Curve, axis: Axis, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> list[str]:
    """The band of a curve and the curve, in as many pieces as there are between its gaps."""
    parts = []
    xs = [x_of(x) for x in curve.x]
    pieces: list[list[int]] = [[]]
    for i, y in enumerate(curve.y):
        if axis.holds(y):
            pieces[-1].append(i)
        elif pieces[-1]:
            pieces.append([])
    for piece in filter(None, pieces):
        if curve.low:
            edge = [(xs[i], y_of(curve.high[i])) for i in piece] + [(xs[i], y_of(curve.low[i])) for i in piece[::-1]]
            parts.append(f'<path class="band" {_colour(curve)} d="M{_points(edge)}Z"/>')
        places = [(xs[i], y_of(curve.y[i])) for i in piece]
        line = _points(places)
        if len(piece) == 1:  # a line of length 0 with round ends is a dot
            parts.append(f'<path class="line dot" {_colour(curve)} d="M{line}h0"/>')
        else:
            parts.append(f'<path class="line" {_stroke(curve)} d="M{line}"/>')
        parts.append(_symbols(curve, places))
    return [part for part in parts if part]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _mark(mark: Mark, at: float, height: float) -> str:
    """The line of a mark, and its word beside it at that height."""
    if mark.level:
        line, x, y, anchor = f"M{LEFT} {at:.1f}H{RIGHT}", RIGHT - 2.0, height, "end"
    else:
        anchor = "end" if at > (LEFT + RIGHT) / 2 else "start"
        line, x, y = f"M{at:.1f} {TOP}V{BOTTOM}", at + (-4 if anchor == "end" else 4), height
    word = f'<text class="word" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(mark.word)}</text>'
    return f'<path class="mark" d="{line}"/>{word if mark.word else ""}'


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
