"""The page: report.html, one file that opens from disk, with the verdict first and everything to check it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ropescale.evals.report.elements import Heat, heat_map, reach_cell
from ropescale.evals.report.findings import (
    Findings,
    Row,
    cell_perplexity,
    failures,
    is_ruler,
    position_perplexities,
    share,
)
from ropescale.evals.report.tables import (
    Comparison,
    comparison,
    has_exact,
    heads,
    loss_table,
    retrieval_table,
    short_table,
)
from ropescale.evals.report.wording import (
    CLOZE_CHANCE,
    arm_text,
    base_model,
    base_text,
    command_text,
    count_text,
    evaluators,
    gain_interval_text,
    gain_text,
    group_text,
    interval_text,
    left_out,
    length_text,
    method_text,
    perplexity_text,
    rate_text,
    ratio_interval_text,
    ratio_text,
    reach_text,
    reasons,
    rules,
    tells,
    tokens_text,
    verdict,
)
from ropescale.evals.results import UNPATCHED, Arm, Cell
from ropescale.evals.statistics import stretch_edges
from ropescale.pages.chart import Axis, Chart, Curve, Mark, bounds, drawn, legend
from ropescale.pages.document import document
from ropescale.pages.elements import (
    Line,
    Raw,
    Value,
    details,
    facts,
    paragraph,
    shown,
    table,
    text,
    tiles,
)

POINTS = 16  # of a curve at most: more would show the texts' own ups and downs
HIGHEST = 1e6  # perplexity at which an axis ends: a curve beyond it leaves the frame, and the others stay legible
FAILURES = 3  # shown per arm and task
FAILURES_IN_ALL = 400  # keeps the page below 3 MB whatever a model says
REPLY = 240  # characters of a reply that are shown
RECORD = 12_000  # characters of a record that are shown
SESSIONS = 12  # of which the date is shown


def page(findings: Findings) -> str:
    """The whole report as HTML."""
    settings = findings.settings
    sections = {
        "effective": ("Effective length", _effective(findings)),
        "arms": ("All arms", _arms(findings)),
        "by-length": ("Perplexity by context length", _by_length(findings)),
        "by-position": ("Perplexity by position", _by_position(findings)),
        "passkey": ("Passkey by depth and length", _depths(findings, "passkey", PASSKEY)),
        "needle": ("Needle by depth and length", _depths(findings, "needle", NEEDLE)),
        "ruler": ("RULER", _ruler(findings)),
        "longppl": ("LongPPL", _longppl(findings)),
        "short": ("Short prompts", _short(findings)),
        "failures": ("Where it fails", _failures(findings)),
        "records": ("What was done to the model", _records(findings)),
        "made": ("How this was made", _provenance(findings)),
    }
    session = findings.results.sessions[-1] if findings.results.sessions else {}
    parts = (_reasons(findings), _tiles(findings), _call(findings), paragraph(left_out(findings), "note"))
    return document(
        title=f"ropescale: {shown(settings.model, 80)}",
        kicker=f"ropescale eval · {shown(settings.model, 80)} · {shown(_date(session), 40)}",
        heading=verdict(findings),
        opening="\n".join(filter(None, parts)),
        sections=sections,
        closing="Written by ropescale from the results beside this file; report.md, report.json, model-card.md and "
        "evaluate.json say the same in other forms.",
    )


PASSKEY = (
    "A five-digit number is hidden in filler and asked for at the end. Columns: length of the prompt in tokens, reply "
    "included; rows: how deep the number lies. Each cell: share of the prompts whose reply holds the number, and how "
    "many of how many."
)
NEEDLE = (
    "A sentence with a number is put into real text and asked for at the end. Columns: length of the prompt in "
    "tokens, reply included; rows: how deep the sentence lies. Each cell: share of the prompts whose reply holds the "
    "number, and how many of how many."
)


def _tiles(findings: Findings) -> str:
    """The figures behind the verdict, of the recommended arm or of the unpatched model."""
    row, alone = findings.best or findings.alone, findings.alone
    same = findings.groups[row.arm.factor][0] if findings.best else alone
    original, named = findings.settings.original_length, base_text(findings)
    figures: list[tuple[str, str, str]] = []
    versus = f"{named} {reach_text(alone.reads, alone.reads_from)}" if findings.best else named
    if row.reads is not None:
        figures.append(("Effective length by retrieval", reach_text(row.reads, row.reads_from), versus))
    versus = f"{named} {reach_text(alone.keeps, alone.keeps_from)}" if findings.best else named
    if row.keeps is not None:
        figures.append(("Effective length by perplexity", reach_text(row.keeps, row.keeps_from), versus))
    if row.retrieval_beyond is not None:
        before = f"{named} {rate_text(same.retrieval_beyond.rate)}" if same.retrieval_beyond else ""
        figures.append(
            (
                f"Retrieval beyond {original:,} tokens",
                rate_text(row.retrieval_beyond.rate),
                before if findings.best else named,
            )
        )
    if row.change is not None:
        figures.append(
            (
                f"Perplexity inside {original:,} tokens",
                ratio_text(row.change),
                _interval(ratio_interval_text(row.change)),
            )
        )
    elif row.inside is not None:
        figures.append((f"Perplexity inside {original:,} tokens", perplexity_text(row.inside), named))
    for task in findings.short_tasks()[:1]:
        gain = findings.gain(row.arm, task) if findings.best and tells(findings, task) else None
        if gain is not None:
            said = _interval(gain_interval_text(gain))
            figures.append((f"Short prompts: {shown(task, 30)}", gain_text(gain), said))
    return tiles(figures)


def _interval(interval: str) -> str:
    return f"95% interval {interval}" if interval else ""


def _reasons(findings: Findings) -> str:
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in reasons(findings))
    return f'<ul class="reasons">{items}</ul>' if items else ""


def _call(findings: Findings) -> str:
    if findings.best is None:
        return ""
    return f'<pre class="wrap"><code>{text(command_text(findings.best.arm, findings))}</code></pre>'


def _effective(findings: Findings) -> str:
    """How far every arm reaches, as bars, and the rule."""
    rows = [findings.alone, *findings.patched]
    if all(row.reads is None and row.keeps is None for row in rows):
        return ""
    original, longest = findings.settings.original_length, max(row.reach for row in rows)
    groups: list[list[Line]] = []
    for same in [[findings.alone], *([r for r in rs if r.arm != UNPATCHED] for rs in findings.groups.values())]:
        lines = []
        for row in same:
            reads = [reach_cell(row.reads, row.reads_from, original, longest)] if findings.basis else []
            keeps = [reach_cell(row.keeps, row.keeps_from, original, longest)] if findings.source else []
            tested = [Value(text=tokens_text(row.reach))]
            lines.append(
                Line(
                    heads=heads(row.arm, findings),
                    values=[*reads, *keeps, *tested],
                    css="pick" if row is findings.best else "",
                )
            )
        groups.append(lines)
    columns = [
        "method",
        "factor",
        *(["by retrieval (tokens)"] if findings.basis else []),
        *(["by perplexity (tokens)"] if findings.source else []),
        "tested to",
    ]
    caption = f"Effective length of each arm; the tick marks the original {original:,} tokens"
    return table(caption, columns, groups) + "".join(paragraph([rule], "note") for rule in rules(findings))


def _arms(findings: Findings) -> str:
    said = [
        f"Compare within a factor: there all arms read the same tokens and answer the same prompts, and "
        f"{base_model(findings)} stands first. In bold: the best patched arm of its factor. Beneath a value: how many "
        f"of how many, and the change against {base_model(findings)} with its 95% interval by paired bootstrap. "
        f"Lengths are in tokens.",
    ]
    if findings.source == "position":
        said.append(
            "Perplexities are by position, from one forward over each window; blocks of a window's positions are "
            "resampled, and blocks of one document are not independent, so take the intervals as a lower bound."
        )
    if findings.source == "perplexity":
        said.append("Perplexities are strided, by context length; documents are resampled.")
    if findings.basis:
        said.append("Retrieval: all prompts of the tasks named above, each counting alike.")
    return paragraph(said) + _comparison_table(
        f"Every arm against {base_model(findings)}", comparison(findings), findings, findings.best
    )


def _comparison_table(caption: str, made: Comparison, findings: Findings, best: Row | None = None) -> str:
    groups = [
        [
            Line(
                heads=heads(arm, findings),
                values=[Value(text=one.text, small=one.small, best=one.best) for one in entries],
                css="pick" if best is not None and arm == best.arm else "",
            )
            for arm, entries in lines
        ]
        for lines in made.groups
    ]
    return table(caption, ["method", "factor", *made.columns], groups)


def _series(findings: Findings) -> dict[str, int]:
    """Method -> number of its colour and symbol, the same in every figure; the first one is the unpatched model."""
    return {name: i for i, name in enumerate(dict.fromkeys(method_text(arm, findings) for arm in findings.arms))}


def _panel_arms(findings: Findings) -> dict[float, list[Arm]]:
    """Factor -> the arms of its panel, the unpatched model first."""
    return {factor: [row.arm for row in rows] for factor, rows in findings.groups.items()} or {1.0: [UNPATCHED]}


def _panel_title(findings: Findings, factor: float) -> str:
    said = group_text(_panel_arms(findings)[factor], factor) if findings.groups else base_text(findings)
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


def _panel(findings: Findings, label: str, curves: list[Curve], x: Axis) -> Chart:
    return Chart(
        label=label,
        curves=curves,
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


def _by_length(findings: Findings) -> str:
    lengths = findings.lengths(UNPATCHED, "perplexity")
    if not lengths:
        return ""
    cells = [findings.cell(UNPATCHED, "perplexity", length) for length in lengths]
    strides = sorted({(cell.get("window"), cell.get("stride")) for cell in cells if cell.get("window")})
    stated = "; ".join(f"{window:,} / {stride:,}" for window, stride in strides)
    count = len({str(sample["document"]) for cell in cells for sample in cell["samples"]})
    series, panels = _series(findings), {}
    for factor, arms in _panel_arms(findings).items():
        reach = max((n for arm in arms[1:] or arms for n in findings.lengths(arm, "perplexity")), default=0)
        within = [n for n in lengths if n <= reach]
        curves = []
        said = []
        for arm in arms:
            points = [
                (n, cell_perplexity(findings.cell(arm, "perplexity", n))) for n in within if _has(findings, arm, n)
            ]
            curves.append(
                Curve(series=series[method_text(arm, findings)], x=[n for n, _ in points], y=[y for _, y in points])
            )
            said.append(f"{arm_text(arm, findings)} " + ", ".join(f"{perplexity_text(y)} at {n:,}" for n, y in points))
        ends = sorted([*within, findings.settings.original_length])
        panels[factor] = _panel(
            findings,
            f"Strided perplexity by context length, {group_text(arms, factor)}: " + "; ".join(said),
            curves,
            Axis(
                label="context length (tokens)",
                logarithmic=True,
                limits=(ends[0] / 1.1, ends[-1] * 1.1),
                ticks=_thinned(within),
            ),
        )
    body = (
        f"What a reader gets who always feeds a context of this length: a window slides over {count} held-out "
        f"documents and only its last part, the stride, is scored; token-weighted. Window / stride in tokens: "
        f"{stated}. Vertical line: the original length. Lower is better. Not to be compared with the perplexity by "
        f"position, which scores the first tokens of longer windows too, nor with that of a training page, which has "
        f"windows of its own: at one length the three are different figures of one model."
    )
    return (
        paragraph([body])
        + _figures(findings, panels)
        + details(
            f"The figures, with the change against {base_model(findings)} and its 95% interval over documents",
            _comparison_table(
                "Strided perplexity by context length in tokens", loss_table(findings, "perplexity"), findings
            ),
        )
    )


def _has(findings: Findings, arm: Arm, length: int) -> bool:
    return findings.results.cell(arm, "perplexity", length) is not None


def _by_position(findings: Findings) -> str:
    lengths = findings.lengths(UNPATCHED, "position")
    if not lengths:
        return ""
    series, panels, tables = _series(findings), {}, []
    counts = {}
    for factor, arms in _panel_arms(findings).items():
        common = [n for n in lengths if all(findings.results.cell(arm, "position", n) for arm in arms)]
        if not common:
            continue
        length = common[-1]
        counts[length] = len(findings.cell(UNPATCHED, "position", length)["samples"])
        curves, said = [], []
        for arm in arms:
            edges, values = _joined(findings.cell(arm, "position", length), findings.settings.original_length)
            middles = [(low + high) / 2 for low, high in pairwise(edges)]
            curves.append(Curve(series=series[method_text(arm, findings)], x=middles, y=values))
            said.append(
                f"{arm_text(arm, findings)} {perplexity_text(values[0])} first, {perplexity_text(values[-1])} last"
            )
        panels[factor] = _panel(
            findings,
            f"Perplexity by position, {group_text(arms, factor)}: " + "; ".join(said),
            curves,
            Axis(
                label="position (tokens)",
                limits=(0, length),
                ticks=_position_ticks(findings.settings.original_length, length),
            ),
        )
        name = group_text(arms, factor) if findings.groups else base_model(findings)
        tables.append(details(f"The figures of {name}", _position_table(findings, arms, length), long=True))
    windows = ", ".join(f"{count} of {length:,} tokens" for length, count in sorted(counts.items()))
    body = (
        f"Where in the context a model breaks: each held-out window is read once, in one forward, and the value at a "
        f"position is the perplexity of the next token given all tokens before it. Windows: {windows}, the same for "
        f"every arm of a panel. The first positions have little to go by. Vertical line: the original length. Lower "
        f"is better. Not to be compared with the strided perplexity."
    )
    return paragraph([body]) + _figures(findings, panels) + "".join(tables)


def _joined(cell: Cell, original: int) -> tuple[list[int], list[float]]:
    """Edges and perplexities of a position cell, neighbours joined while there are more than `POINTS`.

    Never across the original length, as long as that is an edge itself.
    """
    edges = list(cell["samples"][0]["edges"])
    inside = edges.index(original) if original in edges else len(edges) - 1
    joined = next((n for n in (1, 2, 4, 8, 16, 32) if (len(edges) - 1) / n <= POINTS), 64)
    while inside % joined:
        joined //= 2
    kept = [*edges[:-1:joined], edges[-1]]
    samples = []
    for sample in cell["samples"]:
        nats, tokens = [0.0] * (len(kept) - 1), [0] * (len(kept) - 1)
        for i, (loss, count) in enumerate(zip(sample["nll"], sample["tokens"], strict=True)):
            place = min(i // joined, len(kept) - 2)
            nats[place] += loss
            tokens[place] += count
        samples.append({"edges": kept, "nll": nats, "tokens": tokens})
    return position_perplexities({"samples": samples})


def _position_table(findings: Findings, arms: Sequence[Arm], length: int) -> str:
    columns = [_joined(findings.cell(arm, "position", length), findings.settings.original_length) for arm in arms]
    lines = [
        Line(
            heads=[f"{low:,} to {high:,}"],
            values=[Value(text=perplexity_text(values[i])) for _, values in columns],
        )
        for i, (low, high) in enumerate(pairwise(columns[0][0]))
    ]
    cut = set(stretch_edges(findings.settings.original_length, length))
    ends = [high for _, high in pairwise(columns[0][0])]
    groups: list[list[Line]] = [[]]
    for end, line in zip(ends, lines, strict=True):
        groups[-1].append(line)
        if end in cut and end != ends[-1]:
            groups.append([])
    caption = f"Perplexity by position in windows of {length:,} tokens"
    return table(caption, ["positions", *(arm_text(arm, findings) for arm in arms)], groups)


def _depths(findings: Findings, task: str, what: str) -> str:
    lengths = findings.lengths(UNPATCHED, task)
    if not lengths:
        return ""
    cells = [findings.cell(UNPATCHED, task, length) for length in lengths]
    depths = sorted(
        {sample["depth"] for cell in cells for sample in cell["samples"] if sample.get("depth") is not None}
    )
    maps, lines = [], []
    for arm in findings.arms:
        columns = findings.lengths(arm, task)
        rows = {
            rate_text(depth): [_heat(findings.cell(arm, task, n), "score", depth) for n in columns] for depth in depths
        }
        rows["all"] = [_heat(findings.cell(arm, task, n), "score", None) for n in columns]
        maps.append(heat_map(arm_text(arm, findings), "depth", [length_text(n) for n in columns], rows))
        lines.append([_interval_line(findings, arm, task, depth, lengths) for depth in [*depths, None]])
    return (
        paragraph([what])
        + _grid(maps, len(lengths), 5, 8)
        + details(
            "Counts and 95% intervals (Wilson)",
            table(
                f"{task}: found of asked with the Wilson interval, by length in tokens",
                ["arm", "depth", *map(length_text, lengths)],
                lines,
            ),
            long=True,
        )
        + details(
            "All depths together, also by the exact rule (the number as a whole)",
            _comparison_table(
                f"{task}: scores over all depths, by length in tokens", retrieval_table(findings, task), findings
            ),
        )
    )


def _grid(maps: Sequence[str], lengths: int, many: int, more: int) -> str:
    """Heat maps beside one another, in wider columns from `many` lengths and still wider ones from `more`."""
    css = "grid wide" if lengths >= more else "grid" if lengths >= many else "grid narrow"
    return f'<div class="{css}">{"".join(maps)}</div>'


def _heat(cell: Cell, rule: str, depth: float | None) -> Heat | None:
    found = share(cell, rule, depth)
    if not found.asked:
        return None
    said = f"{count_text(found)}, 95% interval {interval_text(found)}"
    return Heat(rate=found.rate, small=count_text(found), said=said)


def _interval_line(findings: Findings, arm: Arm, task: str, depth: float | None, lengths: Sequence[int]) -> Line:
    values: list[Value | Raw] = []
    for length in lengths:
        cell = findings.results.cell(arm, task, length)
        found = None if cell is None else share(cell, "score", depth)
        values.append(Value(text="") if found is None else Value(text=count_text(found), small=[interval_text(found)]))
    return Line(heads=[arm_text(arm, findings), "all" if depth is None else rate_text(depth)], values=values)


def _ruler(findings: Findings) -> str:
    tasks = [name for name in findings.retrieval_tasks() if is_ruler(name) or name not in ("passkey", "needle")]
    if not tasks:
        return ""
    lengths = sorted({n for task in tasks for n in findings.lengths(UNPATCHED, task)})
    maps, lines = [], []
    for arm in findings.arms:
        columns = [n for n in lengths if any(findings.results.cell(arm, task, n) for task in tasks)]
        rows: dict[str, list[Heat | None]] = {
            shown(task, 40): [_task_heat(findings.results.cell(arm, task, n)) for n in columns] for task in tasks
        }
        own = [_task_line(findings, arm, task, lengths) for task in tasks]
        if set(findings.basis) == set(tasks) and len(tasks) > 1:
            averages = findings.row(arm).averages
            rows["average"] = [_average_heat(averages.get(n)) for n in columns]
            own.append(
                Line(
                    heads=[arm_text(arm, findings), "average"],
                    values=[Value(text=rate_text(averages.get(n))) for n in lengths],
                )
            )
        maps.append(heat_map(arm_text(arm, findings), "task", [length_text(n) for n in columns], rows, css="named"))
        lines.append(own)
    said = (
        "Each task hides what it asks for in a text of exactly this many tokens, reply included. Columns: length in "
        "tokens. Each cell: average share of the answers that the reply holds as text (RULER's rule), and beneath it "
        "the share by the exact rule, which wants each answer as a whole word or number."
    )
    missing = [name for name in tasks if findings.lengths(UNPATCHED, name) != lengths]
    notes = [said] + ([f"Not at every length: {', '.join(shown(n, 40) for n in missing)}."] if missing else [])
    return (
        paragraph(notes)
        + _grid(maps, len(lengths), 0, 5)
        + details(
            "Counts, 95% intervals (Wilson) and averages",
            table(
                "RULER: prompts' scores added up, of how many, with the Wilson interval, by length in tokens",
                ["arm", "task", *map(length_text, lengths)],
                lines,
            ),
            long=True,
        )
    )


def _task_heat(cell: Cell | None) -> Heat | None:
    if cell is None:
        return None
    found = share(cell)
    said = f"{count_text(found)}, 95% interval {interval_text(found)}"
    exact = rate_text(share(cell, "exact").rate) if has_exact(cell) else count_text(found)
    return Heat(rate=found.rate, small=exact, said=f"{said}; by the exact rule {exact}") if found.asked else None


def _average_heat(rate: float | None) -> Heat | None:
    return None if rate is None else Heat(rate=rate, small="", said="average over the tasks")


def _task_line(findings: Findings, arm: Arm, task: str, lengths: Sequence[int]) -> Line:
    values: list[Value | Raw] = []
    for length in lengths:
        cell = findings.results.cell(arm, task, length)
        values.append(
            Value(text="") if cell is None else Value(text=count_text(share(cell)), small=[interval_text(share(cell))])
        )
    return Line(heads=[arm_text(arm, findings), shown(task, 40)], values=values)


def _longppl(findings: Findings) -> str:
    lengths = findings.lengths(UNPATCHED, "longppl")
    if not lengths:
        return ""
    counts = []
    for length in lengths:
        samples = findings.cell(UNPATCHED, "longppl", length)["samples"]
        keys, every = sum(one["tokens"] for one in samples), sum(one["of"] for one in samples)
        counts.append(f"{keys:,} of {every:,} at {length:,}")
    said = (
        f"Perplexity of key tokens alone: those that only a long context makes likely, as an evaluator model judges. "
        f"It tells better than plain perplexity whether the context is used. Evaluator: {evaluators(findings)}. Key "
        f"tokens: {'; '.join(counts)}. Beneath each value: the change against {base_model(findings)} on the same "
        f"tokens, with its 95% interval over documents."
    )
    return paragraph([said]) + _comparison_table(
        "Perplexity of key tokens by context length in tokens", loss_table(findings, "longppl"), findings
    )


def _short(findings: Findings) -> str:
    if not findings.short_tasks():
        return ""
    said = (
        "Tasks whose prompts are far shorter than the original length: what a longer context costs where none was "
        f"needed. Beneath each score: the change against {base_model(findings)} on the same questions, in percentage "
        "points, with its 95% interval."
    )
    if "cloze" in findings.short_tasks():
        said += f" Cloze has four answers to every question, so chance is {rate_text(CLOZE_CHANCE)}."
    return paragraph([said]) + _comparison_table("Short tasks", short_table(findings), findings, findings.best)


def _failures(findings: Findings) -> str:
    """A few wrong replies per arm and task, spread over the lengths."""
    missed: dict[Arm, dict[str, list[tuple[int | None, dict[str, Any]]]]] = {}
    for arm in findings.arms:
        for task in findings.tasks():
            for length in [*findings.lengths(arm, task), None]:
                cell = findings.results.cell(arm, task, length)
                for sample in failures(cell) if cell else []:
                    missed.setdefault(arm, {}).setdefault(task, []).append((length, sample))
    total = sum(len(found) for tasks in missed.values() for found in tasks.values())
    if not total:
        return ""
    pairs = sum(len(tasks) for tasks in missed.values())
    limit = max(1, min(FAILURES, FAILURES_IN_ALL // pairs))
    left = FAILURES_IN_ALL
    parts, count = [], 0
    for arm, tasks in missed.items():
        groups = []
        for task, found in tasks.items():
            chosen = _spread(found, min(limit, left))
            left -= len(chosen)
            count += len(chosen)
            groups.append([_failure(task, length, sample) for length, sample in chosen])
        every = sum(map(len, tasks.values()))
        body = table(
            f"Wrong replies: {arm_text(arm, findings)}",
            ["task", "length", "depth", "score", "asked for", "reply"],
            [group for group in groups if group],
            css="failures",
        )
        parts.append(details(f"{arm_text(arm, findings)}: {every:,} of its replies are wrong by the exact rule", body))
    said = (
        f"{total:,} replies are not accepted by the exact rule. Shown are {count:,} of them: for each arm and task "
        f"at most {limit}, spread over the lengths. Long replies are cut."
    )
    return paragraph([said]) + "".join(parts)


def _spread(found: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of a list, evenly from its first to its last."""
    if len(found) <= limit:
        return list(found)
    return [found[round(i * (len(found) - 1) / max(1, limit - 1))] for i in range(limit)]


def _failure(task: str, length: int | None, sample: dict[str, Any]) -> Line:
    depth, target = sample.get("depth"), sample.get("target", "")
    wanted = ", ".join(map(str, target)) if isinstance(target, list) else str(target)
    return Line(
        heads=[shown(task, 40)],
        css="failure",
        values=[
            Value(text=tokens_text(length)),
            Value(text=rate_text(depth) if isinstance(depth, (int, float)) else ""),
            Value(text=rate_text(sample["score"]) if isinstance(sample["score"], (int, float)) else ""),
            Value(text=shown(wanted, 120), css="said"),
            Value(text=shown(sample["reply"], REPLY), css="said"),
        ],
    )


def _records(findings: Findings) -> str:
    parts = []
    for arm in findings.arms:
        cell = findings.results.cell(arm, "record", None)
        if cell is not None and cell["record"] is not None:
            dump = json.dumps(cell["record"], indent=2, ensure_ascii=False)
            parts.append(details(arm_text(arm, findings), f'<pre class="wrap">{text(dump, RECORD)}</pre>', long=True))
    if not parts:
        return ""
    return paragraph(["The record that patching leaves, one per arm."]) + "".join(parts)


def _provenance(findings: Findings) -> str:
    """Command, settings, versions and hardware of the last session; earlier ones by their date."""
    settings, results = findings.settings, findings.results
    session = results.sessions[-1] if results.sessions else {}
    seconds = sum(float(one.get("seconds") or 0) for one in results.timings)
    tokens = sum(int(one.get("tokens") or 0) for one in results.timings)
    dates = [_date(one) for one in results.sessions[-SESSIONS:]]
    more = len(results.sessions) - len(dates)
    rows = {
        "model": f"{settings.model} ({settings.dtype}, parameters {settings.weights})",
        "original length": f"{settings.original_length:,} tokens",
        "existing": settings.existing,
        "layers": settings.layers,
        "backend": settings.backend,
        "seed": str(settings.seed),
        "texts": settings.texts,
        **{
            f"task {shown(name, 40)}": ", ".join(f"{key} {_plain(value)}" for key, value in knobs.items())
            for name, knobs in settings.tasks.items()
        },
        "versions": ", ".join(f"{name} {number}" for name, number in settings.versions.items()),
        "processor": f"{session.get('processor')}, {session.get('cores')} cores, {session.get('threads')} threads",
        "device": str(session.get("device")),
        "system": f"{session.get('system')}, Python {session.get('python')}",
        "compute time": f"{_duration(seconds)} in {len(results.timings):,} cells, {tokens:,} tokens read",
        "sessions": (f"{more} earlier; " if more else "") + ", ".join(dates),
    }
    return (
        f'<pre class="wrap">{text(session.get("command"))}</pre>'
        + facts("Settings, versions and hardware", {name: shown(value, 600) for name, value in rows.items()})
        + _times(findings)
    )


def _times(findings: Findings) -> str:
    """Seconds by arm and task."""
    spent: dict[tuple[Arm, str], float] = {}
    for one in findings.results.timings:
        key = (Arm(method=str(one["method"]), factor=float(one["factor"])), str(one["task"]))
        spent[key] = spent.get(key, 0.0) + float(one.get("seconds") or 0)
    tasks = findings.tasks()
    lines = [
        Line(
            heads=heads(arm, findings),
            values=[
                Value(text=f"{sum(spent.get((arm, task), 0.0) for task in tasks):,.1f}"),
                *(Value(text=f"{spent.get((arm, task), 0.0):,.1f}") for task in tasks),
            ],
        )
        for arm in findings.arms
    ]
    columns = ["method", "factor", "all", *(shown(task, 40) for task in tasks)]
    return details("Compute time by arm and task", table("Seconds by arm and task", columns, [lines])) if spent else ""


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _date(session: dict[str, Any]) -> str:
    """When a session began, to the minute."""
    return str(session.get("date", "")).replace("T", " ")[:16] + " UTC"
