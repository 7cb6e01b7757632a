"""The page: one HTML file that opens from disk, loads nothing and runs nothing. All text is escaped here."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ropescale.destinations import write_file
from ropescale.explain import theory
from ropescale.explain.readings import EFFECTS, Reading, effects, facts, negative_text
from ropescale.geometry import Geometry
from ropescale.pages.chart import Axis, Chart, Curve, Mark, bounds, drawn, legend
from ropescale.pages.document import document
from ropescale.pages.elements import Line, Value, details, number, paragraph, shown, table, text, tiles

STRETCHES = 160  # points of a curve: what a phone and a large screen can both show
ROWS = 12  # of the table under a figure
STRETCH = ("distance", "mean", "lowest", "highest")  # columns for a curve in stretches


def page(model: str, geometry: Geometry, readings: Sequence[Reading]) -> str:
    """The whole page as HTML: of a model by this name, from `readings(geometry, methods, length=...)`."""
    length = readings[0].length
    introduction = (
        f"Every figure is worked out from the config: the query stands at position {length - 1:,} of a context of "
        f"{length:,} tokens, and no weights are read."
    )
    return document(
        title=f"Rotary positions of {model}",
        kicker="ropescale explain",
        heading=f"What positions do to a score in {shown(model, 200)}",
        opening=paragraph([introduction])
        + tiles([(fact, value, said) for fact, (value, said) in facts(geometry, readings[0]).items()]),
        sections={
            "wavelengths": _wavelengths(geometry, readings, length),
            "scores": _scores(geometry, readings, length),
            "decay": _decay(geometry, readings, length),
            "distances": _distances(geometry, readings, length),
            "products": _products(geometry, length),
            "norms": _norms(geometry, readings, length),
        },
    )


def write(path: Path, html: str) -> None:
    """Write the page beside its place and move it there, so that nobody meets half of one.

    Raises:
        InvalidArgumentError: a folder, a link, a device or a pipe is there.
        CheckpointError: nothing can be written there.
    """
    write_file(path, html, name="output", remedy="give another path")


def _wavelengths(geometry: Geometry, readings: Sequence[Reading], length: int) -> tuple[str, str]:
    pairs = range(geometry.pairs)
    base = readings[0].view.inv_freq
    changed = [
        reading
        for reading in readings
        if reading.series == 0 or (not torch.equal(reading.view.inv_freq, base) and bool(reading.view.inv_freq.any()))
    ]
    waves = {reading.name: (2 * math.pi / reading.view.inv_freq).tolist() for reading in changed}
    over = {
        reading.name: next(
            (other.name for other in changed[:i] if torch.equal(other.view.inv_freq, reading.view.inv_freq)), ""
        )
        for i, reading in enumerate(changed)
    }
    same = [
        f"{name} has the wavelengths of {other} here, and is dashed over it." for name, other in over.items() if other
    ]
    curves = {
        reading.name: Curve(series=reading.series, x=pairs, y=waves[reading.name], over=bool(over[reading.name]))
        for reading in changed
    }
    chart = Chart(
        label="Wavelength of each pair in tokens, on a logarithmic axis, as pretrained and under methods",
        curves=[*curves.values()],
        x=Axis(label="pair"),
        y=Axis(label="tokens per turn", logarithmic=True),
        marks=[
            Mark(at=geometry.original_length, word="original length", level=True),
            *([Mark(at=length, word="context", level=True)] if length > geometry.original_length else []),
        ],
    )
    rows = [[str(i), *(number(wave[i]) for wave in waves.values())] for i in _spread(geometry.pairs)]
    return _part(
        "Wavelengths",
        _text(
            "A pair of elements turns by its own angle with every token. Pairs below the line of the original length "
            "have shown every angle in training; those above it have not, and a longer context takes them to angles "
            "the model never met. Methods slow such pairs down. A method that keeps or drops all wavelengths is "
            "left out, as is a pair without position." + "".join(f" {sentence}" for sentence in same)
        ),
        legend(curves),
        _figure("Wavelength by pair", chart, ["pair", *waves], rows),
        _source("RoFormer, arXiv:2104.09864, section 3.2.2; critical dimension: arXiv:2310.05209, arXiv:2502.20082"),
    )


def _scores(geometry: Geometry, readings: Sequence[Reading], length: int) -> tuple[str, str]:
    charts = [
        Chart(
            label=f"Score against distance, {reading.name}",
            curves=[_curve(reading.series, reading.view.distance, reading.view.score, reading.view.visible)],
            x=Axis(label="distance in tokens"),
            y=Axis(label="score"),
            marks=_length_mark(geometry, length),
        )
        for reading in readings
    ]
    # a bias goes down to hundreds, and would flatten all others on one axis
    shared = bounds([chart for chart, reading in zip(charts, readings, strict=True) if not reading.view.biased])
    figures = []
    for chart, reading in zip(charts, readings, strict=True):
        chart = chart if reading.view.biased else replace(chart, y=replace(chart.y, limits=shared))
        figures.append(_figure(reading.name, chart, STRETCH, _stretch_rows(chart.curves[0])))
    return _part(
        "Score against relative distance",
        _text(
            "The score of a query of ones with a key of ones: what position alone does to it, since their content is "
            "the same at every distance. Up to its scale it is the score to expect of a random vector with itself. "
            "The line is the mean of a stretch of distances, the band its lowest and highest; where there is no line, "
            "nothing is visible. A method with a bias has an axis of its own, and shows its head of least bias. What "
            "a method learns begins at zero and is not in these pictures, nor are vectors that enter the first layer."
        ),
        f'<div class="grid">{"".join(figures)}</div>',
        _source("long-term decay: RoFormer, arXiv:2104.09864, section 3.3"),
    )


def _decay(geometry: Geometry, readings: Sequence[Reading], length: int) -> tuple[str, str]:
    base, distances = readings[0], readings[0].view.distance
    everything = torch.ones_like(distances, dtype=torch.bool)
    waves = _curve(0, distances, theory.similarity(geometry, distances), everything)
    bound = _curve(1, distances, theory.decay_bound(geometry, distances), everything)
    within = [distance for distance in [base.first_negative] if distance is not None and distance < length]
    marks = [*_length_mark(geometry, length), *(Mark(at=at, word="B < 0") for at in within)]
    pictures = (
        (
            "B(m), as pretrained",
            Chart(label="B(m) against distance, as pretrained", curves=[waves],
                  x=Axis(label="distance m in tokens"), y=Axis(label="B(m)"), marks=marks),
        ),
        (
            "Bound of the decay, as pretrained",
            Chart(label="The mean of the partial sums against distance", curves=[bound],
                  x=Axis(label="distance in tokens"), y=Axis(label="mean |S|"), marks=_length_mark(geometry, length)),
        ),
    )  # fmt: skip
    figures = [_figure(title, chart, STRETCH, _stretch_rows(chart.curves[0])) for title, chart in pictures]
    rows = [
        [
            reading.name,
            negative_text(reading),
            "" if reading.first_negative is None else number(reading.first_negative / geometry.original_length),
        ]
        for reading in readings
    ]
    return _part(
        "How far like is told from unlike",
        _text(
            "B(m) is the sum of cos(m w) over all pairs: how much more a like key scores than an unlike one at "
            "distance m. Where it is negative, attention prefers the unlike one. The other curve bounds the size of a "
            "score: it falls with distance, in waves and never to nothing. A larger theta moves both out, but not "
            "steadily, so distances are looked through one by one."
        ),
        f'<div class="grid">{"".join(figures)}</div>',
        _table(
            "The first whole distance with a negative B(m), at the frequencies of the last query",
            ["", "first negative distance", "in original lengths"],
            rows,
        ),
        _source("B(m): Men et al. 2024, arXiv:2405.14591; bound: RoFormer, arXiv:2104.09864, equation 37"),
    )


def _distances(geometry: Geometry, readings: Sequence[Reading], length: int) -> tuple[str, str]:
    """What the last query is given for its distances: a picture where a method changes them, a row for each."""
    figures = []
    for reading in readings:
        view = reading.view
        if bool(view.visible.all()) and torch.equal(view.seen, view.distance.double()):
            continue
        curve = _curve(reading.series, view.distance, view.seen, view.visible)
        chart = Chart(
            label=f"Distance that the rotation sees against the true distance, {reading.name}",
            curves=[replace(curve, low=(), high=())],
            x=Axis(label="true distance in tokens"),
            y=Axis(
                label="distance seen",
                limits=(0, 1.15 * max(geometry.original_length, float(view.seen[view.visible].max()))),
            ),
            marks=[Mark(at=geometry.original_length, word="original length", level=True)],
        )
        rows = [[number(curve.x[i]), number(curve.y[i])] for i in _spread(len(curve.x))]
        figures.append(_figure(reading.name, chart, ["distance", "distance seen"], rows))
    rows = [[reading.name, *effects(reading, readings[0])[1:]] for reading in readings]
    pictures = f'<div class="grid">{"".join(figures)}</div>' if figures else ""
    return _part(
        "What the last query sees",
        _text(
            "Methods that act when attention reads give the rotation other distances than the true ones, or hide "
            "keys. A distance above the original length is one that training never showed. "
            + ("None of the methods here does so." if not figures else "A gap is what nobody sees.")
        ),
        pictures,
        _table(
            f"The query at position {length - 1:,}",
            ["", *EFFECTS[1:]],
            rows,
        ),
        _source("each method's own paper, see the table of methods in the README"),
    )


def _products(geometry: Geometry, length: int) -> tuple[str, str]:
    """Position vectors that are added beside a rotation that multiplies, each taken apart and put together again."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, geometry.rotary_dim, generator=generator, dtype=torch.float64)
    distances = torch.arange(min(length, STRETCHES))
    here = torch.full_like(distances, length - 1)
    rotary = theory.modulation(geometry, query, key, here, here - distances)
    added = theory.addition(query, key, here, here - distances)
    pictures = (
        (
            "Added: sinusoidal vectors",
            {"x·y": added.content, "x·p'": added.content_position, "p·y": added.position_content,
             "p·p'": added.position},
            added.score,
        ),
        ("Multiplied: rotation", {"Σ cos(wd) q·k": rotary.cosine, "Σ sin(wd) q·Jk": rotary.sine}, rotary.score),
    )  # fmt: skip
    figures = []
    for title, parts, score in pictures:
        named = {"score": score, **parts}
        curves = {
            name: Curve(series=series, x=distances.tolist(), y=part.tolist())
            for series, (name, part) in enumerate(named.items())
        }
        chart = Chart(
            label=f"{title}: the score and its parts against distance",
            curves=[*curves.values()],
            x=Axis(label="distance in tokens"),
            y=Axis(label="product"),
        )
        rows = [[str(i), *(number(float(part[i])) for part in named.values())] for i in _spread(len(distances))]
        figures.append(_figure(title, chart, ["distance", *named], rows, legend(curves)))
    return _part(
        "Added or multiplied",
        _text(
            "Sinusoidal position vectors are added to content, so a score has four terms: content alone, two that mix "
            "content with one absolute position, and one of the positions alone, the same whatever the content is. "
            "Rotation multiplies: each pair's content is modulated by a wave of d, key position less query position, "
            "and no term is left without content or with an absolute position. One random query and key."
        ),
        f'<div class="grid">{"".join(figures)}</div>',
        _table(
            "Checked in float64: the largest difference between the score and the sum of its parts",
            ["", "identity", "difference"],
            [
                ["added", "(x + p)·(y + p') = x·y + x·p' + p·y + p·p'", number(added.error)],
                ["multiplied", "q·R(d)k = Σ cos(wd) q·k + sin(wd) q·Jk", number(rotary.error)],
            ],
        ),
        _source("Vaswani et al., arXiv:1706.03762, section 3.5; RoFormer, arXiv:2104.09864, equation 16"),
    )


def _norms(geometry: Geometry, readings: Sequence[Reading], length: int) -> tuple[str, str]:
    generator = torch.Generator().manual_seed(0)
    positions = torch.linspace(0, length - 1, min(length, 1024), dtype=torch.float64).round().long()
    vectors = torch.randn(len(positions), geometry.rotary_dim, generator=generator, dtype=torch.float64)
    rows = [
        [
            reading.name,
            number(theory.norm_error(reading.view.inv_freq, vectors, positions)),
            number(theory.norm_error(reading.view.inv_freq, vectors.float(), positions)),
            number(reading.view.attention_factor),
        ]
        for reading in readings
    ]
    return _part(
        "Norms",
        _text(
            "A rotation keeps the length of a vector, so positions never make a query or key stronger. The attention "
            "factor of a method does, on purpose: it multiplies what is rotated, the same at every position."
        ),
        _table(
            f"The largest relative change of a norm over {len(positions):,} random vectors and positions",
            ["", "float64", "float32", "attention factor"],
            rows,
        ),
        _source("RoFormer, arXiv:2104.09864, section 3.2.2; attention factor: YaRN, arXiv:2309.00071, section 3.4"),
    )


def _curve(series: int, distances: Tensor, values: Tensor, visible: Tensor) -> Curve:
    """Values in stretches of neighbouring distances: mean, lowest and highest of what is visible."""
    shown = values.where(visible, math.nan)
    stretches = min(STRETCHES, len(distances))
    rows = [
        (float(part.double().mean()), float(seen.nanmean()), float(low), float(high))
        for part, seen in zip(distances.tensor_split(stretches), shown.tensor_split(stretches), strict=True)
        for low, high in [seen[~seen.isnan()].aminmax() if not bool(seen.isnan().all()) else (math.nan, math.nan)]
    ]
    x, y, low, high = zip(*rows, strict=True)
    return Curve(series=series, x=x, y=y, low=low, high=high)


def _stretch_rows(curve: Curve) -> list[list[str]]:
    """Some stretches of a curve: the columns of `STRETCH`."""
    return [[number(row[i]) for row in (curve.x, curve.y, curve.low, curve.high)] for i in _spread(len(curve.x))]


def _length_mark(geometry: Geometry, length: int) -> list[Mark]:
    """Where training ended, if the picture goes that far."""
    return [Mark(at=geometry.original_length, word="original length")] if geometry.original_length < length else []


def _spread(n: int) -> list[int]:
    """The first, the last, and some between of n places."""
    few = min(n, ROWS)
    return sorted({round(i * (n - 1) / max(few - 1, 1)) for i in range(few)})


def _text(said: str) -> str:
    return paragraph([said])


def _source(said: str) -> str:
    return paragraph([f"Source: {said}."], "note")


def _part(title: str, *parts: str) -> tuple[str, str]:
    """A heading, and the HTML beneath it."""
    return title, "\n".join(filter(None, parts))


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column names the rows."""
    lines = [Line(heads=[first], values=[Value(text=cell) for cell in others]) for first, *others in rows]
    return table(caption, columns, [lines])


def _figure(title: str, chart: Chart, columns: Sequence[str], rows: Sequence[Sequence[str]], lines: str = "") -> str:
    """A picture with some of its numbers folded away beneath it."""
    numbers = details("numbers", _table(f"{title}: some of the numbers", columns, rows))
    return f"<figure><h3>{text(title)}</h3>{drawn(chart)}{lines}{numbers}</figure>"
