"""The chart of every page: numbers, gaps, and words that do not cover one another."""

from __future__ import annotations

import math
import re

import pytest

from ropescale.pages.chart import Axis, Chart, Curve, Mark, drawn


def test_a_gap_breaks_a_line_and_every_point_lies_in_the_frame():
    curve = Curve(series=1, x=[0, 1, 2, 3], y=[1.0, math.nan, 1000.0, 10.0])
    marks = [Mark(at=1e4, word="<above>", level=True)]
    text = drawn(Chart(label="a", curves=[curve], x=Axis(label="x"), y=Axis(label="y", logarithmic=True), marks=marks))
    lines = re.findall(r'class="line(?: dot)?"[^>]* d="([^"]+)"', text)
    assert [line.count("L") for line in lines] == [0, 1]
    points = [tuple(map(float, pair)) for line in lines for pair in re.findall(r"([\d.]+) ([\d.]+)", line)]
    assert len(points) == 3
    assert all(58 <= x <= 350 and 14 <= y <= 186 for x, y in points)
    assert "&lt;above&gt;" in text


def test_words_of_level_lines_that_are_near_do_not_cover_each_other():
    chart = Chart(
        label="near",
        curves=[Curve(series=0, x=[0, 15], y=[6, 140_000])],
        x=Axis(label="x"),
        y=Axis(label="y", logarithmic=True),
        marks=[Mark(at=128, word="original length", level=True), Mark(at=512, word="context", level=True)],
    )
    words = [(float(x), float(y)) for x, y in re.findall(r'class="word" x="([\d.]+)" y="([\d.]+)"', drawn(chart))]
    assert len(words) == 2
    assert abs(words[0][1] - words[1][1]) >= 10 or words[0][0] != words[1][0]  # letters are about 9 high


def test_the_word_of_a_level_line_stands_where_no_other_line_runs():
    """A tick just above a line sends its word below."""
    y = [1 + 60.0 * i for i in range(50)]
    chart = Chart(
        label="x",
        curves=[Curve(series=0, x=range(50), y=y)],
        x=Axis(label="x"),
        y=Axis(label="y", logarithmic=True),
        marks=[Mark(at=700, word="below", level=True), Mark(at=200, word="above", level=True)],
    )
    svg = drawn(chart)
    ticks = [float(y) for y in re.findall(r'<path d="M58 ([\d.]+)H350"/>', svg)]
    marks = [float(y) for y in re.findall(r'<path class="mark" d="M58 ([\d.]+)H350"/>', svg)]
    words = [float(y) for y in re.findall(r'class="word" x="348.0" y="([\d.]+)"', svg)]
    assert words[0] > marks[0]
    assert words[1] < marks[1]
    for word, own in zip(words, marks, strict=True):
        assert not [line for line in {*ticks, *marks} - {own} if word - 9 < line < word + 2]


@pytest.mark.parametrize(
    "y",
    [
        [float(i) for i in range(21)],  # which ends above the mark, at its right end
        [min(float(i), 9.6) for i in range(21)],  # which ends just below it
        [min(float(i), 10.4) for i in range(21)],  # just above
        [10.4 - i / 100 for i in range(21)],  # along it
    ],
)
@pytest.mark.parametrize("level", [True, False])
def test_the_word_of_a_mark_stands_where_no_curve_runs(y: list[float], level: bool) -> None:
    """Held against the points of the curve as they are drawn, closely spaced, and a letter's width from the font."""
    fine = [x / 20 for x in range(401)]
    dense = [y[int(x)] + (x - int(x)) * (y[min(int(x) + 1, 20)] - y[int(x)]) for x in fine]
    chart = Chart(
        label="x",
        curves=[Curve(series=1, x=fine, y=dense)],
        x=Axis(label="x"),
        y=Axis(label="y", limits=(0, 21)),
        marks=[Mark(at=10, word="original length", level=level)],
    )
    svg = drawn(chart)
    x, foot, anchor = re.search(r'class="word" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', svg).groups()
    left = float(x) - (90 if anchor == "end" else 0)
    path = re.search(r'class="line"[^>]* d="M([^"]+)"', svg)[1]
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert len(points) > 300
    within = [(a, b) for a, b in points if left < a < left + 90 and float(foot) - 9 < b < float(foot) + 2]
    assert within == []
