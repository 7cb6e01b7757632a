"""The report of a demo: one HTML file that opens from disk, with the verdict first and everything to check it.

Built from the results on disk alone, so it can be written again at any time. Figures are drawn by matplotlib and
stand inline as SVG; every text from outside is escaped. This room knows no model.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from ropescale.errors import RopescaleError
from ropescale.evals.results import (
    RULE,
    UNPATCHED,
    Arm,
    Results,
    Row,
    perplexity_text,
    read,
    share_text,
    stretch_edges,
    table,
    verdict,
    write_atomically,
)

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
except ImportError as error:
    raise RopescaleError(
        "report: matplotlib must be installed, got no package of that name; pip install 'ropescale[eval]'"
    ) from error

# Figures are drawn in stand-in colours, which become CSS variables: so they follow the reader's light or dark.
INK, FAINT = "#010101", "#020202"
SERIES = [f"#0300{i:02x}" for i in range(8)]  # 0 is the unpatched model
MARKERS = ["", "o", "s", "^", "D", "v", "P", "X"]
DRAWING = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
POINTS = 16  # of a curve at most: more would show the texts' own ups and downs
DASHES: list[Any] = [(0, (4, 2)), "-", "-", "-", "-", (0, (1, 1)), (0, (1, 1)), (0, (1, 1))]

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6169; --rule: #d9dce1; --page: #fdfdfc; --card: #f4f5f6;
  --heat: 32 105 172; --s0: #6b7078; --s1: #c2571a; --s2: #0f7b6c; --s3: #8a4fb5; --s4: #1f6fc4; --s5: #a8354f;
  --s6: #6f6a12; --s7: #3d4b8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --soft: #a2a8b1; --rule: #3a3f46; --page: #16181b;
  --card: #1f2226; --heat: 90 160 230; --s0: #a4a9b2; --s1: #f09a5e; --s2: #4cc3ae; --s3: #c59bea; --s4: #72b1f7;
  --s5: #ef8aa2; --s6: #cfc65a; --s7: #9fb0f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue",
  "DejaVu Sans", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.35rem, 1rem + 1vw, 1.5rem); line-height: 1.25; font-weight: 650; margin: .4rem 0 1rem;
  max-width: 44rem; text-wrap: pretty; }
h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; }
p { max-width: 44rem; margin: .5rem 0; }
.kicker, .note, figcaption, caption { color: var(--soft); font-size: .875rem; }
.kicker { margin: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.25rem;
  margin: 1rem 0; }
.grid.narrow { grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .8rem; max-width: 40rem;
  break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 1rem 0 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .45rem; font-size: .9rem; }
.legend svg { width: 2.4rem; height: .8rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; }
th[scope=row], .text { text-align: left; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; }
tbody + tbody tr:first-child > * { border-top: 1px solid var(--rule); }
.best { font-weight: 700; }
.heat { width: 100%; font-size: .82rem; table-layout: fixed; }
.heat th, .heat td { padding: .25rem .2rem; text-align: center; font-weight: 400; }
.heat th { color: var(--soft); }
.heat thead th { border: 0; }
.heat td { background: rgb(var(--heat) / var(--share)); border: 2px solid var(--card); line-height: 1.2;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.heat small { display: block; font-size: .72rem; opacity: .85; }
td.full { color: #fff; }
@media (prefers-color-scheme: dark) { td.full, td.most { color: #0d1117; } }
.facts th { color: var(--soft); font-weight: 400; padding-left: 0; vertical-align: top; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
pre, code { font: .82rem/1.5 ui-monospace, "SF Mono", "DejaVu Sans Mono", Consolas, monospace; }
pre { background: var(--card); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; margin: .5rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
@media print { main { padding: 0; max-width: none; } body { font-size: 11pt; } h2 { break-after: avoid; }
  .scroll, pre { overflow: visible; white-space: pre-wrap; } }
"""


def write(folder: Path) -> Path:
    """Write `report.html` into a folder of results and return its path; unfinished arms are named and left out.

    Raises:
        InvalidArgumentError: no results there, or the unpatched arm is not finished.
    """
    path = folder / "report.html"
    write_atomically(path, page(read(folder)))
    return path


def page(results: Results) -> str:
    """The whole report as HTML."""
    settings = results.settings
    groups = table(results)
    finished = [UNPATCHED, *(row.arm for rows in groups.values() for row in rows if row.arm != UNPATCHED)]
    unfinished = [arm for arm in results.arms() if arm not in finished]
    sentence = verdict(groups, settings)
    windows = sum(count for _, count in settings.documents)
    left_out = (
        f'<p class="note">Not finished, so left out: {escape(", ".join(arm.label for arm in unfinished))}.</p>'
        if unfinished
        else ""
    )
    body = f"""
<header>
<p class="kicker">ropescale demo · {escape(settings.model)} · {escape(_date(results.sessions[-1]))}</p>
<h1>{escape(sentence)}</h1>
<p class="note">{escape(RULE)}</p>
{left_out}
</header>
<section><h2>Perplexity by position</h2>
<p>{windows} held-out windows of {settings.lengths[-1]:,} tokens from {len(settings.documents)} documents, the same
for every arm. Each window is read once; the value at a position is the perplexity of the next token given all tokens
before it, over all windows. Vertical line: the original length of {settings.original_length:,} tokens. Lower is
better.</p>
{_legend(finished)}
<div class="grid">{"".join(_curves(results, factor, rows, finished) for factor, rows in groups.items())}</div>
{_bucket_tables(results, groups)}
</section>
<section><h2>Passkey by depth and length</h2>
<p>A five-digit number is hidden in filler and asked for at the end. Percentage of the prompts that greedy decoding
answers in full, and how many of how many. Columns: length of the prompt in tokens; rows: how deep the number lies.</p>
<div class="grid narrow">{_heat_map(results, UNPATCHED)}</div>
{"".join(_heat_maps(results, rows) for rows in groups.values())}
</section>
<section><h2>All arms</h2>
<p>Perplexity per stretch of positions. Compare within a factor: there all arms read the same tokens. In bold: the
lowest of its factor. Change: perplexity inside the original length against the unpatched model. Keeps to: how far
perplexity keeps, by the rule above.</p>
{_rows(results, groups)}
</section>
<section><h2>What was done to the model</h2>
<p>The record that patching leaves, one per arm.</p>
{"".join(_record(results, arm) for arm in finished if arm != UNPATCHED)}
</section>
<section><h2>How this was made</h2>
{_provenance(results)}
</section>"""
    title = escape(f"ropescale: {settings.model}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>{body}\n</main>\n</body>\n</html>\n"
    )


def _series(finished: Sequence[Arm]) -> dict[str, int]:
    """Method -> number of its colour and marker, the same in every figure."""
    methods = dict.fromkeys(arm.method for arm in finished)  # unpatched first
    return {method: 1 + (i - 1) % (len(SERIES) - 1) if i else 0 for i, method in enumerate(methods)}


def _legend(finished: Sequence[Arm]) -> str:
    items = []
    for method, i in _series(finished).items():
        dash = "" if i else ' stroke-dasharray="6 3"'
        line = f'<line x1="0" y1="5" x2="30" y2="5" stroke-width="2"{dash}/>'
        items.append(
            f'<li><svg viewBox="0 0 30 10" aria-hidden="true" style="stroke: var(--s{i}); fill: var(--s{i})">{line}'
            f"{_MARKS[MARKERS[i]]}</svg>{escape('unpatched' if method == UNPATCHED.method else method)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


# the markers of matplotlib, for the legend
_MARKS = {
    "": "",
    "o": '<circle cx="15" cy="5" r="3.4"/>',
    "s": '<rect x="11.8" y="1.8" width="6.4" height="6.4"/>',
    "^": '<path d="M15 1 19 8.4H11Z"/>',
    "D": '<path d="M15 1 19 5 15 9 11 5Z"/>',
    "v": '<path d="M15 9 11 1.6H19Z"/>',
    "P": '<path d="M13.4 1h3.2v2.4H19v3.2h-2.4V9h-3.2V6.6H11V3.4h2.4Z"/>',
    "X": '<path d="M11 3 13 1 15 3 17 1 19 3 17 5 19 7 17 9 15 7 13 9 11 7 13 5Z"/>',
}


def _curves(results: Results, factor: float, rows: Sequence[Row], finished: Sequence[Arm]) -> str:
    """One panel: perplexity by position of the arms of one factor."""
    original = results.settings.original_length
    reach = rows[0].reach
    series = _series(finished)
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(4.0, 3.0))
        axes = figure.subplots()
    for row in rows:
        i = series[row.arm.method]
        edges, values = _bucket_perplexities(results, row.arm, reach, POINTS)
        middles = [(first + last) / 2 for first, last in pairwise(edges)]
        axes.plot(
            middles,
            values,
            color=SERIES[i],
            linestyle=DASHES[i],
            marker=MARKERS[i] or None,
            markersize=3.6,
            linewidth=1.6,
        )
    axes.axvline(original, color=FAINT, linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(_log_ticks(*axes.get_ylim())))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlim(0, reach)
    axes.xaxis.set_major_locator(FixedLocator(_position_ticks(original, reach)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("position (tokens)")
    axes.set_ylabel("perplexity")
    axes.grid(axis="y", which="major", color=FAINT, alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    name = f"Perplexity by position at factor {factor:g}, original length {original:,}: " + "; ".join(
        f"{row.arm.label} {perplexity_text(row.inside)} inside, {perplexity_text(row.whole)} in all" for row in rows
    )
    return f"<figure><h3>Factor {factor:g}</h3>{_svg(figure, name, f'factor-{factor:g}')}</figure>"


def _position_ticks(original: int, reach: int) -> list[int]:
    """0, the original length and its multiples, thinned to what fits."""
    step = original if reach >= 2 * original else original // 2
    while reach // step > 5:
        step *= 2
    return sorted({0, original, *range(step, reach + 1, step)} - ({original} if step > 2 * original else set()))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values: powers of ten, with 2 and 5 times them where these are few."""
    powers = [10.0**i for i in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    if math.log10(high / low) < 0.8:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [tick for power in powers for step in steps if low <= (tick := power * step) <= high]


def _svg(figure: Figure, name: str, identifier: str) -> str:
    """The figure as inline SVG with the page's colours and fonts, the same bytes every time."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**DRAWING, "svg.hashsalt": identifier}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    # two figures in one page must not share identifiers
    drawing = re.sub(r'\bid="([^"]+)"', rf'id="{identifier}-\1"', drawing)
    drawing = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{identifier}-", drawing)
    for colour, variable in [(INK, "ink"), (FAINT, "soft"), *((c, f"s{i}") for i, c in enumerate(SERIES))]:
        drawing = drawing.replace(colour, f"var(--{variable})")
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1; font-family: inherit", drawing)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)


def _bucket_perplexities(
    results: Results, arm: Arm, reach: int, points: float = math.inf
) -> tuple[list[int], list[float]]:
    """Edges and perplexities of an arm's buckets up to `reach`, neighbours joined while there are too many.

    At most eight buckets are joined, the original length, so that it stays an edge.
    """
    document = results.settings.documents[0][0]
    edges = [edge for edge in results.cells["perplexity", arm.method, arm.factor, document]["edges"] if edge <= reach]
    joined = next(n for n in (1, 2, 4, 8) if n == 8 or (len(edges) - 1) / n <= points)
    edges = [*edges[:-1:joined], edges[-1]]
    return edges, [results.perplexity(arm, first, last) for first, last in pairwise(edges)]


def _bucket_tables(results: Results, groups: dict[float, list[Row]]) -> str:
    """The figures behind the curves."""
    parts = []
    for factor, rows in groups.items():
        columns = [_bucket_perplexities(results, row.arm, row.reach) for row in rows]
        edges = columns[0][0]
        head = "".join(f'<th scope="col">{escape(row.arm.label)}</th>' for row in rows)
        lines = []
        for i, (first, last) in enumerate(pairwise(edges)):
            cells = "".join(f"<td>{perplexity_text(values[i])}</td>" for _, values in columns)
            lines.append(f'<tr><th scope="row">{first:,} to {last:,}</th>{cells}</tr>')
        parts.append(
            f"<details><summary>The figures at factor {factor:g}</summary>"
            f'<div class="scroll"><table><thead><tr><th scope="col" class="text">positions</th>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div></details>"
        )
    return "".join(parts)


def _heat_maps(results: Results, rows: Sequence[Row]) -> str:
    """The patched arms of one factor, side by side."""
    return f'<div class="grid narrow">{"".join(_heat_map(results, row.arm) for row in rows[1:])}</div>'


def _heat_map(results: Results, arm: Arm) -> str:
    """Passkeys of one arm, depth by length."""
    settings = results.settings
    lengths = [length for length in settings.lengths if length <= settings.reach(arm)]
    if not lengths:
        return ""
    head = "".join(f'<th scope="col">{length:,}</th>' for length in lengths)
    lines = []
    for depth in settings.depths:
        cells = []
        for length in lengths:
            cell = results.cells["passkey", arm.method, arm.factor, length, depth]
            share = cell["correct"] / cell["samples"]
            # the text turns light, or dark, where that is easier to read on the colour
            shade = ' class="full"' if share > 0.85 else ' class="most"' if share > 0.6 else ""
            cells.append(
                f'<td{shade} style="--share: {share:.2f}">{share:.0%}'
                f"<small>{cell['correct']}/{cell['samples']}</small></td>"
            )
        lines.append(f'<tr><th scope="row">{depth:.0%}</th>{"".join(cells)}</tr>')
    return (
        f'<figure><h3>{escape("unpatched" if arm == UNPATCHED else arm.label)}</h3><table class="heat">'
        f'<thead><tr><th scope="col">depth</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></figure>'
    )


def _rows(results: Results, groups: dict[float, list[Row]]) -> str:
    """The table of the terminal."""
    settings = results.settings
    edges = stretch_edges(settings, max(row.reach for rows in groups.values() for row in rows))
    headings = [
        f"to {edges[0]:,}",
        "change",
        *(f"to {edge:,}" for edge in edges[1:]),
        "whole",
        "keys inside",
        "keys beyond",
        "keeps to",
    ]
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    bodies = []
    for factor, rows in groups.items():
        columns = [[row.inside for row in rows], *zip(*(row.stretches for row in rows), strict=True)]
        lowest = [min(column) for column in columns]
        lines = []
        for row in rows:
            values = [
                _cell(value, value == best) for value, best in zip([row.inside, *row.stretches], lowest, strict=True)
            ]
            change = "" if row.arm == UNPATCHED else f"{row.change:+.1%}"
            texts = [
                values[0],
                f"<td>{change}</td>",
                *values[1:],
                "<td></td>" * (len(edges) - len(values)),
                _cell(row.whole, row.whole == min(other.whole for other in rows)),
                f"<td>{share_text(row.passkeys_inside)}</td><td>{share_text(row.passkeys_beyond)}</td>",
                f"<td>{row.keeps:,}</td>",
            ]
            method = "unpatched" if row.arm == UNPATCHED else row.arm.method
            lines.append(f'<tr><th scope="row">{escape(method)}</th><td>{factor:g}</td>{"".join(texts)}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col" class="text">method</th><th scope="col">factor</th>'
        f"{head}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _cell(value: float, best: bool) -> str:
    mark = ' class="best"' if best else ""
    return f"<td{mark}>{perplexity_text(value)}</td>"


def _record(results: Results, arm: Arm) -> str:
    record = results.cells["record", arm.method, arm.factor]["record"]
    return (
        f"<details><summary>{escape(arm.label)}</summary>"
        f"<pre>{escape(json.dumps(record, indent=2, ensure_ascii=False))}</pre></details>"
    )


def _provenance(results: Results) -> str:
    """Command, settings, versions and hardware, of the last session; earlier ones by their date."""
    settings, session = results.settings, results.sessions[-1]
    facts = {
        "model": f"{settings.model} ({settings.dtype}, parameters {settings.weights})",
        "texts": f"{', '.join(f'{name} ({count})' for name, count in settings.documents)} (windows {settings.texts})",
        "passkeys": f"{settings.samples} per length and depth, seed {settings.seed}",
        "versions": ", ".join(f"{name} {number}" for name, number in settings.versions),
        "processor": f"{session.get('processor')}, {session.get('cores')} cores, {session.get('threads')} threads",
        "system": f"{session.get('system')}, Python {session.get('python')}",
        "compute time": f"{sum(cell.get('seconds', 0) for cell in results.cells.values()):,.0f} s in all cells",
        "sessions": ", ".join(map(_date, results.sessions)),
    }
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in facts.items()
    )
    return f'<pre>{escape(str(session.get("command")))}</pre><table class="facts"><tbody>{lines}</tbody></table>'


def _date(session: dict[str, Any]) -> str:
    """When a session began, to the minute."""
    return str(session.get("date", "")).replace("T", " ")[:16] + " UTC"
