"""What the cells of the head-to-head say together: docs/results/head-to-head.json, its page's tables, and the picture.

Methods of a factor and a stage have read the same windows and passkeys, so every comparison is paired. A rank is one
more than the number of methods that are surely better, by an interval of 95 % of the difference: methods of one rank
are not told apart by it. The prose around the tables is written by hand.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ropescale.evals.results import write_atomically
from ropescale.evals.statistics import Estimate, paired_bootstrap, perplexity, perplexity_ratio, wilson

BEGIN, END = "<!-- made by scripts/head_to_head.py -->\n", "<!-- end -->\n"
REFERENCE = "yarn"  # what the others are held against: the one that most models are extended by
STAGES = ("untrained", "searched", "trained")
COLOURS = {"untrained": "#2458a6", "searched": "#7a4ea3", "trained": "#c2571a"}
Row = dict[str, Any]


def write_page(
    rows: list[Row],
    *,
    natives: list[Row],
    missing: Sequence[str],
    left_out: Mapping[str, str],
    settings: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write figures, tables and picture of these cells."""
    summary = summarised(rows, natives)
    figures = {
        "settings": dict(settings),
        "left_out": dict(left_out),
        "missing": list(missing),
        "native": natives,
        "summary": summary,
        "cells": rows,
    }
    write_atomically(folder / "head-to-head.json", stated(figures))
    page = folder / "head-to-head.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    write_atomically(page, before + BEGIN + tables(figures) + END + rest.partition(END)[2])
    draw(summary, folder / "head-to-head.svg")


def stated(figures: Mapping[str, Any]) -> str:
    """As JSON with a line for each cell, so that a cell that changes is a line that changes."""
    entries = []
    for name, value in figures.items():
        if isinstance(value, list) and value:
            body = ",\n".join(f"  {json.dumps(one)}" for one in value)
            entries.append(f" {json.dumps(name)}: [\n{body}\n ]")
        else:
            entries.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def summarised(rows: Sequence[Row], natives: Sequence[Row]) -> list[Row]:
    """A line for each method, factor and stage, over its seeds, those of one stage by the rank of their text."""
    told = []
    by_seed = {(row["method"], row["factor"], row["stage"], row["seed"]): row for row in rows}
    for (factor, stage), group in itertools.groupby(
        sorted(rows, key=lambda row: (row["factor"], STAGES.index(row["stage"]))),
        key=lambda row: (row["factor"], row["stage"]),
    ):
        arms: dict[str, list[Row]] = {}
        for row in sorted(group, key=lambda row: row["seed"]):
            arms.setdefault(row["method"], []).append(row)
        native = next((one["perplexity"] for one in natives if one["factor"] == factor), None)
        lines = []
        for method, own in arms.items():
            plain = [by_seed.get(("unpatched", factor, "untrained", row["seed"])) for row in own]
            reference = [by_seed.get((REFERENCE, factor, stage, row["seed"])) for row in own]
            right, asked = keys(own, factor)
            first = [row for row in own if row["seed"] == 0]
            whole = f"0-{128 * factor}"
            lines.append(
                {
                    "method": method,
                    "factor": factor,
                    "stage": stage,
                    "seeds": [row["seed"] for row in own],
                    "perplexity_beyond": perplexity(*beyond(own)),
                    "against_yarn": ratio(reference, own, beyond_of),
                    "rank_text": 1 + sum(surely_reads_better(other, own) for other in arms.values()),
                    "passkeys": [right, asked],
                    "interval": list(wilson(right, asked)),
                    "rank_passkeys": 1 + sum(surely_finds_more(other, own, factor) for other in arms.values()),
                    "perplexity_inside": perplexity(*inside(own)),
                    "change_inside": ratio(plain, own, inside_of),
                    "passkeys_inside": [sum(row["passkeys"]["128"][place] for row in own) for place in (0, 1)],
                    # whole windows of seed 0, which the native model has read as well
                    "against_native": first[0]["perplexity"][whole] / native[str(128 * factor)] - 1
                    if first and native
                    else None,
                    "seconds": round(sum(sum(row["seconds"].values()) for row in own) / len(own), 1),
                }
            )
        told += sorted(lines, key=lambda line: (line["rank_text"], line["perplexity_beyond"]))
    return told


def beyond_of(row: Row) -> tuple[list[float], int]:
    """Nats of each window at positions beyond the original length, and how many tokens of each these are."""
    names = [name for name in row["nats"] if not name.startswith("0-")]
    return [sum(of_window) for of_window in zip(*(row["nats"][name] for name in names), strict=True)], sum(
        row["tokens"][name] for name in names
    )


def inside_of(row: Row) -> tuple[list[float], int]:
    """The same within the original length."""
    return row["nats"]["0-128"], row["tokens"]["0-128"]


def beyond(own: Sequence[Row]) -> tuple[float, int]:
    """Nats and tokens of all seeds."""
    read = [beyond_of(row) for row in own]
    return math.fsum(math.fsum(nats) for nats, _ in read), sum(len(nats) * count for nats, count in read)


def inside(own: Sequence[Row]) -> tuple[float, int]:
    """The same within the original length."""
    read = [inside_of(row) for row in own]
    return math.fsum(math.fsum(nats) for nats, _ in read), sum(len(nats) * count for nats, count in read)


def keys(own: Sequence[Row], factor: int) -> tuple[int, int]:
    """Passkeys found and asked for at the target, over all seeds."""
    found = [row["passkeys"][str(128 * factor)] for row in own]
    return sum(right for right, _ in found), sum(asked for _, asked in found)


def ratio(before: Sequence[Row | None], after: Sequence[Row], part: Any) -> list[float] | None:
    """Perplexity after / before over windows of all seeds that both have read, with its interval."""
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one is not None]
    if not pairs:
        return None
    return list(estimate([one for one, _ in pairs], [other for _, other in pairs], part))


def estimate(before: Sequence[Row], after: Sequence[Row], part: Any) -> Estimate:
    """The same of rows of the same seeds."""
    earlier = [nats for row in before for nats in part(row)[0]]
    later, tokens = [], []
    for row in after:
        nats, count = part(row)
        later += nats
        tokens += [count] * len(nats)
    return perplexity_ratio(earlier, later, tokens)


def shared(one: Sequence[Row], other: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of both whose seeds both have."""
    seeds = {row["seed"] for row in one} & {row["seed"] for row in other}
    return [row for row in one if row["seed"] in seeds], [row for row in other if row["seed"] in seeds]


def surely_reads_better(other: Sequence[Row], own: Sequence[Row]) -> bool:
    """Whether text beyond the original length costs the other less, by the whole interval."""
    theirs, mine = shared(other, own)
    return other is not own and bool(mine) and estimate(mine, theirs, beyond_of).high < 1


def surely_finds_more(other: Sequence[Row], own: Sequence[Row], factor: int) -> bool:
    """Whether the other answers more passkeys at the target, by the whole interval."""
    theirs, mine = shared(other, own)
    if other is own or not mine:
        return False
    marks = [[int(mark) for row in rows for mark in row["hits"][str(128 * factor)]] for rows in (mine, theirs)]
    return paired_bootstrap(*marks).low > 0


def tables(figures: Mapping[str, Any]) -> str:
    """A table for each factor and stage, as Markdown, and what is missing of the grid."""
    parts = []
    for (factor, stage), group in itertools.groupby(
        figures["summary"], key=lambda line: (line["factor"], line["stage"])
    ):
        lines = list(group)
        seeds = sorted({seed for line in lines for seed in line["seeds"]})
        native = next((one["perplexity"] for one in figures["native"] if one["factor"] == factor), None)
        beside = (
            f" The native model: {native[str(128 * factor)]:.2f} over whole windows of seed 0."
            if native
            else " No native model was trained at this length."
        )
        head = [
            "rank", "method", "perplexity beyond", "against yarn", "against native", "passkeys at the target", "rank",
            "perplexity to 128", "against unpatched", "passkeys at 128", "seconds a seed",
        ]  # fmt: skip
        parts += [
            f"### x{factor}, {stage}\n",
            f"Seeds {', '.join(map(str, seeds))}; {128 * factor:,} tokens.{beside}\n",
            table(head, [cells(line, seeds) for line in lines]),
        ]
    missing = figures["missing"]
    if missing:
        parts.append(
            f"Not run yet, {len(missing)} cells, which the same command runs: {', '.join(families(missing))}.\n"
        )
    return "\n".join(parts) + "\n"


def cells(line: Row, seeds: Sequence[int]) -> list[str]:
    """A line of a table."""
    right, asked = line["passkeys"]
    low, high = line["interval"]
    fewer = "" if line["seeds"] == list(seeds) else f" (seed {', '.join(map(str, line['seeds']))})"
    return [
        str(line["rank_text"]),
        f"`{line['method']}`{fewer}",
        f"{line['perplexity_beyond']:.2f}",
        "" if line["method"] == REFERENCE else changed(line["against_yarn"]),
        "" if line["against_native"] is None else f"{line['against_native']:+.1%}",
        f"{right / asked:.0%} ({low:.0%} to {high:.0%})",
        str(line["rank_passkeys"]),
        f"{line['perplexity_inside']:.2f}",
        "" if line["method"] == "unpatched" else changed(line["change_inside"]),
        f"{line['passkeys_inside'][0] / line['passkeys_inside'][1]:.0%}",
        f"{line['seconds']:.0f}",
    ]


def changed(found: Sequence[float] | None) -> str:
    """A ratio with its interval, in percent."""
    if found is None:
        return ""
    value, low, high = (one - 1 for one in found)
    return f"{value:+.1%} ({low:+.1%} to {high:+.1%})"


def families(names: Sequence[str]) -> list[str]:
    """Names of cells as patterns by factor, stage and seed, with how many each stands for."""
    counted: dict[str, int] = {}
    for name in names:
        pattern = f"*-{name.partition('-')[2]}"
        counted[pattern] = counted.get(pattern, 0) + 1
    return [f"`{pattern}` ({count})" for pattern, count in counted.items()]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(summary: Sequence[Row], path: Path) -> None:
    """Passkeys at the target against perplexity beyond the original length: a point a method, a colour a stage."""
    factors = sorted({line["factor"] for line in summary})
    with rc_context({"svg.hashsalt": "ropescale", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(4.2 * len(factors), 4.6), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        for place, factor in enumerate(factors):
            axes = figure.add_subplot(1, len(factors), place + 1)
            for stage, colour in COLOURS.items():
                lines = [line for line in summary if (line["factor"], line["stage"]) == (factor, stage)]
                if not lines:
                    continue
                axes.scatter(
                    [line["perplexity_beyond"] for line in lines],
                    [100 * line["passkeys"][0] / line["passkeys"][1] for line in lines],
                    s=16, color=colour, label=stage, alpha=0.8,
                )  # fmt: skip
                for line in lines:
                    if line["rank_text"] <= 3 or line["rank_passkeys"] <= 3 or line["method"] == REFERENCE:
                        at = line["perplexity_beyond"], 100 * line["passkeys"][0] / line["passkeys"][1]
                        axes.annotate(
                            line["method"], at, xytext=(3, 2), textcoords="offset points", fontsize=5.5, color=colour
                        )
            axes.set_xscale("log")
            axes.set_xticks(ticks := [16, 20, 25, 32, 40, 50, 64], [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_title(f"x{factor}, {128 * factor:,} tokens")
            axes.set_xlabel("perplexity beyond 128 tokens (less is better)")
            axes.set_ylim(-4, 104)
            axes.grid(color="#ddd", linewidth=0.5)
            if not place:
                axes.set_ylabel("passkeys found at the target, %")
                axes.legend(loc="upper right", fontsize=7)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
