"""Line charts as inline SVG: colours are variables of the page, so they follow light and dark, fonts are the page's.

Written by hand: pages load and run nothing, hold dozens of charts, and are made where no library that draws is
installed. Series differ by colour, by the symbol at their points where these are few, and by dash when
colours come round.
"""

import itertools
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
    runs = [
        [(x_of(curve.x[i]), y_of(curve.y[i])) for i in piece]
        for curve in chart.curves
        for piece in _pieces(curve, chart.y)
    ]
    for y in [y_of(tick) for tick in ticks] + [y_of(mark.at) for mark in chart.marks if mark.level]:
        runs.append([(LEFT, y), (RIGHT, y)])
    words: list[_Word] = []
    for i, mark in enumerate(chart.marks):
        at = y_of(mark.at) if mark.level else x_of(mark.at)
        own = [(LEFT, at), (RIGHT, at)] if mark.level else []
        places = _beside_level(mark.word, at) if mark.level else _beside_upright(mark.word, at, TOP + 10 + 15 * i)
        words.append(_freest(places, [run for run in runs if run != own], words))
        parts.append(_mark(mark, at, words[-1]))
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
    for piece in _pieces(curve, axis):
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


def _pieces(curve: Curve, axis: Axis) -> list[list[int]]:
    """The numbers of the points between the gaps of a curve."""
    pieces: list[list[int]] = [[]]
    for i, y in enumerate(curve.y):
        if axis.holds(y):
            pieces[-1].append(i)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


@dataclass(frozen=True, kw_only=True)
class _Word:
    """Where the word of a mark stands: letters are about 9 high, and 6 wide."""

    x: float  # of its start, or of its end where `anchor` says so
    y: float  # of its foot
    anchor: str
    letters: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of what it covers, with a little room."""
        wide = 6.2 * self.letters
        left = self.x - wide if self.anchor == "end" else self.x
        return left - 1, left + wide + 1, self.y - 10, self.y + 3

    def crossed_by(self, run: Sequence[tuple[float, float]]) -> bool:
        """Whether a line through these points runs through it."""
        left, right, top, bottom = self.box
        for (x, y), (to_x, to_y) in itertools.pairwise(run) if len(run) > 1 else [(run[0], run[0])]:
            start, end = max(min(x, to_x), left), min(max(x, to_x), right)
            if start > end:
                continue
            slope = (to_y - y) / (to_x - x) if to_x != x else 0.0
            heights = sorted((y + slope * (start - x), y + slope * (end - x)) if to_x != x else (y, to_y))
            if heights[0] < bottom and heights[1] > top:
                return True
        return False

    def covers(self, other: "_Word") -> bool:
        """Whether two words share a place."""
        left, right, top, bottom = self.box
        to_left, to_right, to_top, to_bottom = other.box
        return left < to_right and to_left < right and top < to_bottom and to_top < bottom


def _mark(mark: Mark, at: float, word: _Word) -> str:
    """The line of a mark, and its word."""
    line = f"M{LEFT} {at:.1f}H{RIGHT}" if mark.level else f"M{at:.1f} {TOP}V{BOTTOM}"
    said = (
        f'<text class="word" x="{word.x:.1f}" y="{word.y:.1f}" text-anchor="{word.anchor}">{escape(mark.word)}</text>'
    )
    return f'<path class="mark" d="{line}"/>{said if mark.word else ""}'


def _beside_level(word: str, at: float) -> list[_Word]:
    """Where the word of a level line may stand: above or below it, at the right end or the left, the best first."""
    ends = ((RIGHT - 2.0, "end"), (LEFT + 4.0, "start"))
    return [_Word(x=x, y=at + y, anchor=anchor, letters=len(word)) for x, anchor in ends for y in (-4, 12)]


def _beside_upright(word: str, at: float, height: float) -> list[_Word]:
    """Where the word of an upright line may stand: to either side of it, at that height or at the foot."""
    sides = [(at + 4, "start"), (at - 4, "end")]
    if at > (LEFT + RIGHT) / 2:
        sides.reverse()
    return [_Word(x=x, y=y, anchor=anchor, letters=len(word)) for y in (height, BOTTOM - 6) for x, anchor in sides]


def _freest(places: Sequence[_Word], runs: Sequence[Sequence[tuple[float, float]]], words: Sequence[_Word]) -> _Word:
    """The first of the places at which a word meets fewest lines and other words, within the frame."""

    def met(place: _Word) -> int:
        left, right, _, _ = place.box
        outside = left < LEFT or right > WIDTH
        return sum(map(place.covers, words)) + sum(place.crossed_by(run) for run in runs) + (len(runs) + 1) * outside

    return min(places, key=met)


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
