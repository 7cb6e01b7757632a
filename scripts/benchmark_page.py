"""Write docs/benchmarks.md: every ratio of benchmarks/, of the figures that docs/results/benchmark-*.json keep.

    make bench                            # every benchmark, hours of two quiet cores, then this page
    python scripts/benchmark_page.py      # the page alone; --check says whether it is what the files say

A benchmark measures pairs side by side in one run and states a ratio, so a slow machine slows both; how much the
machine swings is said beside it where a benchmark measures one thing against itself. A ratio is never taken from two
runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
Figures = dict[str, Any]
NOT_RUN = "<!-- not run: measures anew -->"  # by tests/house/test_readme.py, which runs what pages have to paste


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One thing over another, measured in pairs."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    bar: str = ""  # "at most 1.5"; none where nothing was promised
    met: bool = True

    def cells(self) -> list[str]:
        """As a row of the table has them."""
        swing = "" if self.low is None or self.high is None else f"{number(self.low)} to {number(self.high)}"
        held = "" if not self.bar else self.bar if self.met else f"{self.bar}: **missed**"
        return [self.what, number(self.value), swing, held]


def main() -> int:
    """Write the page, or say whether it is what the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is another")
    text = page()
    if parser.parse_args().check:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    parts = [HEAD, table(["ratio", "median", "swing", "bar"], [])]
    rows: list[str] = []
    sections = []
    for name, (title, read) in READERS.items():
        figures = json.loads((RESULTS / f"benchmark-{name}.json").read_text(encoding="utf-8"))
        ratios = read(figures)
        rows += [f"| **[{title}](#{name})** | | | |", *(line(ratio.cells()) for ratio in ratios)]
        sections.append(section(name, title, figures, len(ratios)))
    missed = [row for row in rows if "**missed**" in row]
    parts[1] += "\n".join(rows) + "\n"
    parts.append(f"{len(rows) - len(READERS)} ratios, {len(missed)} of them beyond their bar.\n\n")
    return "".join(parts) + HOW + "".join(sections)


def section(name: str, title: str, figures: Figures, count: int) -> str:
    """How one benchmark was measured."""
    at = figures["measured"]
    versions = ", ".join(f"{package} {version}" for package, version in figures["versions"].items())
    counts = {"thread": figures.get("threads", 1), "round": figures.get("rounds")}
    said = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items() if count)
    return (
        f'<a id="{name}"></a>\n\n### {title}\n\n{NOT_RUN}\n\n```bash\n{at["command"]}\n```\n\n'
        f"{count} ratios, of {at['date']}; {at['machine']}; {said}; "
        f"load: {at['load']}. {versions}. [Figures](results/benchmark-{name}.json)\n\n"
    )


def patch(figures: Figures) -> list[Ratio]:
    """A patched model against a native one, with two native ones for the swing of the machine."""
    found = []
    for what, of_phase in figures["ratios"].items():
        one, control = of_phase["patched / native"], of_phase["native / native"]
        bar = f"within native / native, {number(control['low'])} to {number(control['high'])}"
        met = control["low"] <= one["median"] <= control["high"]
        found.append(
            Ratio(
                what=f"{what}, patched / native",
                value=one["median"],
                low=one["low"],
                high=one["high"],
                bar=bar,
                met=met,
            )
        )
    return found + [
        Ratio(
            what=f"patch with its proof (`{method}`) / a forward of 16 tokens",
            value=one["patch_ms"] / one["forward_16_tokens_ms"],
        )
        for method, one in figures["call"].items()
        if isinstance(one, dict)  # before patches were proven there were times alone
    ]


def late_rotation(figures: Figures) -> list[Ratio]:
    """Patched / unpatched, by method."""
    groups = {"": figures["rows"]} | {
        f" ({name})": one["rows"] for name, one in figures.items() if isinstance(one, dict) and "rows" in one
    }
    return [
        Ratio(
            what=f"`{row['method']}`: {row['what']}, patched / native{said}",
            value=row["ratio"],
            low=row.get("low"),
            high=row.get("high"),
            bar="" if row["bar"] is None else f"at most {row['bar']:g}",
            met=row["bar"] is None or row["ratio"] <= row["bar"],
        )
        for said, rows in groups.items()
        for row in rows
    ]


def evaluation(figures: Figures) -> list[Ratio]:
    """`RopescaleLM` against the harness's `HFLM`: time and memory of ours / theirs, so less than 1 is less."""
    strided = {name: one for name, one in figures["strided"].items() if isinstance(one, dict)}
    return [
        at_most("memory above the model, perplexity of 8,192 tokens, ours / HFLM", figures["memory"]["ratio"], 1 / 3),
        at_most("loss by position up to 8,192 tokens, time, ours / one HFLM run", figures["position"]["cpu"], 1.0),
        *(
            at_most(f"strided perplexity of a text of {name.removesuffix('W')} windows, time", one["cpu"], 1.5)
            for name, one in strided.items()
        ),
        *(
            at_most(f"passkeys, {name}, time", one["cpu"], 1 / (1.5 if name.endswith("11 depths") else 1.25))
            for name, one in figures["passkey"].items()
        ),
    ]


def training(figures: Figures) -> list[Ratio]:
    """Tokens a second of ours / theirs, so more than 1 is faster, and memory of ours / theirs."""
    wall = figures["speed"]["wall"]
    others = {name: ratios for name, ratios in wall.items() if isinstance(ratios, list)}
    memory = figures["memory"]
    return [
        *(
            spread(f"tokens a second, {'Trainer / itself' if name == 'control' else f'ours / {name}'}", ratios)
            for name, ratios in others.items()
        ),
        Ratio(what="peak above the model, 2,048 tokens, ours / Trainer", value=memory["ratio"]),
        Ratio(what="the same with four times the vocabulary / with one, ours", value=memory["growth"]["ours"]),
        Ratio(what="the same with four times the vocabulary / with one, Trainer", value=memory["growth"]["trainer"]),
    ]


def pose(figures: Figures) -> list[Ratio]:
    """Tokens a second of positions that reach four times as far / of full rows."""
    return [
        spread("tokens a second, rows of pose / full rows of as many tokens", figures["pose"]["ratios"]),
        spread("tokens a second, full rows / themselves", figures["pose"]["control"]),
    ]


def search(figures: Figures) -> list[Ratio]:
    """Seconds of a candidate by loading and patching / by swapping it in."""
    named = {"read": "a candidate that reads one window of 256 tokens", "ready": "a candidate that reads nothing"}
    return [
        Ratio(
            what=f"{named[name]}, reload / swap",
            value=one["ratio"]["median"],
            low=one["ratio"]["low"],
            high=one["ratio"]["high"],
        )
        for name, one in figures["speed"].items()
    ]


def at_most(what: str, value: float, bar: float) -> Ratio:
    """A ratio that was promised not to exceed a bar."""
    return Ratio(what=what, value=value, bar=f"at most {number(bar)}", met=value <= bar)


def spread(what: str, ratios: Sequence[float]) -> Ratio:
    """The ratio of each round."""
    return Ratio(what=what, value=statistics.median(ratios), low=min(ratios), high=max(ratios))


def number(value: float) -> str:
    """Two decimals, or none of what is large."""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def line(cells: Sequence[str]) -> str:
    """A row of Markdown."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"


READERS: dict[str, tuple[str, Callable[[Figures], list[Ratio]]]] = {
    "patch": ("What a patch costs", patch),
    "late-rotation": ("Methods that act in attention", late_rotation),
    "evaluation": ("An evaluation against the harness's own model class", evaluation),
    "training": ("A training step against Trainer and TRL", training),
    "pose": ("A training step of skip-wise positions", pose),
    "search": ("A candidate of a search", search),
}

HEAD = """\
# Benchmarks

Every ratio that `benchmarks/` measures, as it was measured last. Written by `python scripts/benchmark_page.py` from
the files beside [the results](results/README.md); nothing on this page is typed by hand.

A ratio compares two things that took turns in one run on one machine. The swing is the range of the rounds, or nine
tenths of them; where there is none, one round was measured, or the best of several. A bar is what was promised before.

"""
HOW = """\
## How each was measured

`make bench` runs them all and writes this page again: hours on two quiet cores. One alone is the command below. Load
is the mean number of processes that were busy meanwhile, or what was noted of it.

"""

if __name__ == "__main__":
    raise SystemExit(main())
