"""Wavelengths of every pair under several methods, as one picture: what each does to which pairs.

Drawn by matplotlib, since the charts of the pages are no PNG and no PDF; with their colours and dashes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from ropescale.destinations import replaced
from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods import FixedMethod, Method
from ropescale.pages.chart import Curve
from ropescale.pages.style import COLOURS
from ropescale.spectrum import base_inv_freq

METHODS = ("linear", "ntk", "by_parts", "yarn")
FORMATS = ("pdf", "png", "svg")
WIDTH = 1.6  # points, of a line


def require_format(path: Path) -> None:
    """Refuse a file that is no picture, before anything is drawn.

    Raises:
        InvalidArgumentError: another suffix than those of `FORMATS`.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise InvalidArgumentError(
            f"output: must be a file that ends in one of {', '.join(FORMATS)}, got {str(path)!r}; name it so"
        )


def wavelengths(geometry: Geometry, methods: Sequence[Method], *, length: int) -> dict[str, list[float]]:
    """Name -> tokens per turn of every pair in a context of `length` tokens; infinite for one without position.

    Raises:
        InvalidArgumentError: a method that changes distances or scores, not frequencies.
    """
    curves = {"as pretrained": (2 * math.pi / base_inv_freq(geometry)).tolist()}
    for method in methods:
        if not isinstance(method, FixedMethod):
            raise InvalidArgumentError(
                f"methods: must be methods that change frequencies, got {method.name!r}, which acts when attention "
                f"reads; see it with ropescale explain"
            )
        curves[method.name] = method.spectrum(geometry, length).wavelength.tolist()
    return curves


def draw(path: Path, model: str, geometry: Geometry, curves: dict[str, list[float]], *, length: int) -> Path:
    """Write the picture: tokens per turn over pairs, with the original length and the context as lines.

    Raises:
        CheckpointError: the file cannot be written.
        InvalidArgumentError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context, ticker
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgumentError(
            f"plot: the package matplotlib must be installed, got {error}; pip install ropescale[eval]"
        ) from error

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for series, (name, values) in enumerate(curves.items()):
        finite = [value if math.isfinite(value) else math.nan for value in values]
        over = any(values == earlier for earlier in list(curves.values())[:series])  # then both are to be seen
        curve = Curve(series=series, over=over)
        dash = (0, [float(length) / WIDTH for length in curve.dash.split()]) if curve.dash else "-"
        still = sum(not math.isfinite(value) for value in values)
        label = f"{name} ({still} pairs without position)" if still else name
        marker = "." if len(values) <= 64 else ""
        axes.plot(
            finite,
            linestyle=dash,
            color=COLOURS[curve.colour],
            label=label,
            linewidth=WIDTH,
            marker=marker,
            markersize=4,
        )
    for tokens, word in ((geometry.original_length, "original length"), (length, "context")):
        axes.axhline(tokens, color="#575d66", linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate(
            f"{word}: {tokens:,}",
            (1, tokens),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color="#575d66",
            fontsize=8.5,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("pair, from the fastest to the slowest")
    axes.set_ylabel("wavelength, tokens per turn")
    axes.set_title(f"{model}: theta {geometry.theta:,.0f}, {geometry.pairs} pairs", loc="left", fontsize=10.5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    # the same command draws the same bytes: no time of making, and names of parts that are not drawn by lot
    kind = path.suffix.lower().removeprefix(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with (
        replaced(path, name="output", remedy="give another path") as work,
        rc_context({"svg.hashsalt": "ropescale"}),
    ):
        figure.savefig(work, dpi=160, format=kind, metadata=undated)
    return path
