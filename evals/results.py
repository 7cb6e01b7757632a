"""The results of a demo on disk, and what they say: cells, rows of the table, the verdict.

A folder holds `run.json` (settings, sessions) and `results.jsonl` (one line per finished cell). Reading them
needs neither torch nor a model. This room computes; it prints and draws nothing.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ropescale.errors import InvalidArgumentError

PERPLEXITY_TOLERANCE = 1.25  # times the unpatched perplexity inside the original length

Cell = dict[str, Any]  # one line of results.jsonl
Key = tuple[Any, ...]  # what tells one cell from another


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the comparison: the model patched with a method at a factor, or left as it is."""

    method: str
    factor: float

    @property
    def label(self) -> str:
        """How progress, tables and the report name it."""
        return "none" if self == UNPATCHED else f"{self.method} x{self.factor:g}"


UNPATCHED = Arm(method="none", factor=1.0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a cell's figures depend on besides its arm; results of other settings cannot be compared."""

    model: str
    weights: str  # first 16 hex digits of the SHA-256 over all parameters
    dtype: str
    original_length: int  # tokens
    lengths: tuple[int, ...]  # tokens, ascending; the last one is the length of the perplexity windows
    depths: tuple[float, ...]
    samples: int  # passkeys per length and depth
    seed: int
    documents: tuple[tuple[str, int], ...]  # name, windows cut from it
    texts: str  # first 16 hex digits of the SHA-256 over all windows
    versions: tuple[tuple[str, str], ...]  # package, version

    def reach(self, arm: Arm) -> int:
        """How far an arm is read, in tokens: the unpatched one everywhere, the others to factor x L."""
        window = self.lengths[-1]
        return window if arm == UNPATCHED else min(window, math.floor(arm.factor * self.original_length))

    def keys(self, arm: Arm) -> list[Key]:
        """The cells of one arm, in the order in which they run."""
        name = (arm.method, arm.factor)
        lengths = [length for length in self.lengths if length <= self.reach(arm)]
        return [
            ("record", *name),
            *(("perplexity", *name, document) for document, _ in self.documents),
            *(("passkey", *name, length, depth) for length in lengths for depth in self.depths),
        ]


class Results:
    """The finished cells of one folder, in memory and on disk."""

    def __init__(self, folder: Path, settings: Settings, sessions: list[dict[str, Any]], cells: dict[Key, Cell]):
        self.folder = folder
        self.settings = settings
        self.sessions = sessions  # who ran when: command, date, hardware
        self.cells = cells

    def append(self, cell: Cell) -> None:
        """Add a finished cell: one line, one write, so that a kill leaves it whole, torn at the end, or absent."""
        line = (json.dumps(cell) + "\n").encode()
        descriptor = os.open(self.folder / "results.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.cells[key_of(cell)] = cell

    def arms(self) -> list[Arm]:
        """All arms with a finished cell: unpatched first, then by factor, in the order in which they ran."""
        met = dict.fromkeys(Arm(method=c["method"], factor=c["factor"]) for c in self.cells.values())
        return sorted(met, key=lambda arm: (arm != UNPATCHED, arm.factor))

    def missing(self, arm: Arm) -> list[Key]:
        """The cells of an arm that are not finished."""
        return [key for key in self.settings.keys(arm) if key not in self.cells]

    def perplexity(self, arm: Arm, first: int, last: int) -> float:
        """Token-weighted perplexity over positions [first, last), both edges of buckets, of all documents."""
        nats, tokens = 0.0, 0
        for document, _ in self.settings.documents:
            cell = self.cells["perplexity", arm.method, arm.factor, document]
            edges = cell["edges"]
            for (start, stop), total, count in zip(pairwise(edges), cell["nll_sum"], cell["count"], strict=True):
                if first <= start and stop <= last:
                    nats, tokens = nats + total, tokens + count
        return math.exp(min(nats / tokens, 700)) if tokens else math.nan

    def passkeys(self, arm: Arm, lengths: Iterable[int]) -> tuple[int, int]:
        """Passkeys found and passkeys asked for at these lengths, over all depths."""
        keys = [("passkey", arm.method, arm.factor, n, d) for n in lengths for d in self.settings.depths]
        cells = [self.cells[key] for key in keys]
        return sum(cell["correct"] for cell in cells), sum(cell["samples"] for cell in cells)


def key_of(cell: Cell) -> Key:
    """What tells a cell from every other one of its folder."""
    axes = {"record": (), "perplexity": ("document",), "passkey": ("length", "depth")}[cell["task"]]
    return (cell["task"], cell["method"], cell["factor"], *(cell[axis] for axis in axes))


def start(folder: Path, settings: Settings, session: dict[str, Any]) -> Results:
    """The folder made ready for new cells, with the finished ones of an earlier run of the same settings.

    Raises:
        InvalidArgumentError: the folder holds results of other settings, or cannot be read.
    """
    if not (folder / "run.json").exists() and (folder / "results.jsonl").exists():
        raise InvalidArgumentError(
            f"--output: a folder with results.jsonl must hold its run.json too, got {str(folder)!r}; "
            f"choose another folder with --output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder, settings, [], {})
    if (folder / "run.json").exists():
        results = read(folder)
        for item in fields(Settings):
            ours, theirs = getattr(settings, item.name), getattr(results.settings, item.name)
            if ours != theirs:
                raise InvalidArgumentError(
                    f"--output: results in {str(folder)!r} must be of the same {item.name} ({theirs!r}), "
                    f"got {ours!r}; choose another folder with --output"
                )
        _cut_torn_line(folder / "results.jsonl")
    results.sessions.append(session)
    write_atomically(
        folder / "run.json",
        json.dumps({"settings": asdict(settings), "sessions": results.sessions}, indent=2) + "\n",
    )
    return results


def read(folder: Path) -> Results:
    """The results in a folder; a line that a kill left torn at the end is dropped with a warning.

    Raises:
        InvalidArgumentError: no results there, or not what a demo writes.
    """
    run = folder / "run.json"
    if not run.exists():
        raise InvalidArgumentError(
            f"results: a folder must hold the run.json of a demo, got {str(folder)!r}; "
            f"run ropescale demo --output first"
        )
    try:
        stored = json.loads(run.read_text(encoding="utf-8"))
        settings = Settings(**{name: _tuples(value) for name, value in stored["settings"].items()})
        sessions = list(stored["sessions"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"results: {str(run)!r} must be as a demo wrote it, got {type(error).__name__}; choose another folder"
        ) from error
    return Results(folder, settings, sessions, _cells(folder / "results.jsonl"))


def write_atomically(path: Path, text: str) -> None:
    """Write beside the place and move there, so that no reader and no kill ever meets half a file."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _cells(path: Path) -> dict[Key, Cell]:
    """Every finished cell of the file; a later line of the same key wins."""
    if not path.exists():
        return {}
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        warnings.warn(f"{path}: the last line is cut off and is dropped; its cell counts as not run", stacklevel=3)
    cells: dict[Key, Cell] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            cell = json.loads(line)
            cells[key_of(cell)] = cell
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"results: line {number} of {str(path)!r} must be a cell as a demo wrote it, got {line[:40]!r}; "
                f"remove the line and run again"
            ) from error
    return cells


def _cut_torn_line(path: Path) -> None:
    """Remove what stands after the last line end, so that the next cell begins a line of its own."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _tuples(value: Any) -> Any:
    """JSON lists as the tuples they were."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one arm's cells say, over the positions that its group of the table covers."""

    arm: Arm
    reach: int  # tokens
    inside: float  # perplexity at positions inside the original length
    change: float  # inside, against unpatched on the same windows: 0.02 is 2 % worse
    stretches: tuple[float, ...]  # perplexity of each stretch beyond the original length
    whole: float  # perplexity of all positions
    passkeys_inside: tuple[int, int]  # found, asked for
    passkeys_beyond: tuple[int, int]
    keeps: int  # tokens up to which perplexity keeps, by `RULE`; 0 is less than the original length


def stretch_edges(settings: Settings, reach: int) -> list[int]:
    """Where the stretches of the table begin and end: L, 2L, 4L ... to `reach`, or quarters of L below 2L."""
    original = settings.original_length
    steps = [original * i // 4 for i in range(4, 8)] if reach < 2 * original else [original * 2**i for i in range(40)]
    return [*(edge for edge in steps if edge < reach), reach] if reach > original else [reach]


def table(results: Results) -> dict[float, list[Row]]:
    """Factor -> rows, of all finished arms; each group opens with the unpatched model on the same positions.

    Raises:
        InvalidArgumentError: the unpatched arm, which all others are compared with, is not finished.
    """
    if missing := results.missing(UNPATCHED):
        raise InvalidArgumentError(
            f"results: all cells of the unpatched model must be finished, got {len(missing)} missing in "
            f"{str(results.folder)!r}; run the same demo again to go on"
        )
    groups: dict[float, list[Row]] = {}
    for arm in results.arms():
        if arm == UNPATCHED or results.missing(arm):
            continue
        if arm.factor not in groups:
            groups[arm.factor] = [_row(results, UNPATCHED, results.settings.reach(arm))]
        groups[arm.factor].append(_row(results, arm, results.settings.reach(arm)))
    return groups or {1.0: [_row(results, UNPATCHED, results.settings.lengths[-1])]}


def _row(results: Results, arm: Arm, reach: int) -> Row:
    settings = results.settings
    original = settings.original_length
    inside_reach = min(original, reach)
    edges = stretch_edges(settings, reach)
    inside = results.perplexity(arm, 0, inside_reach)
    unpatched = results.perplexity(UNPATCHED, 0, inside_reach)
    stretches = tuple(results.perplexity(arm, a, b) for a, b in pairwise(edges))
    asked = [length for length in settings.lengths if length <= reach]
    keeps = 0
    for (_, high), perplexity in zip(pairwise([0, *edges]), [inside, *stretches], strict=True):
        if not perplexity <= PERPLEXITY_TOLERANCE * unpatched:
            break
        keeps = high
    return Row(
        arm=arm,
        reach=reach,
        inside=inside,
        change=inside / unpatched - 1,
        stretches=stretches,
        whole=results.perplexity(arm, 0, reach),
        passkeys_inside=results.passkeys(arm, [n for n in asked if n <= original]),
        passkeys_beyond=results.passkeys(arm, [n for n in asked if n > original]),
        keeps=keeps,
    )


RULE = (
    f"An arm keeps its perplexity over a stretch of positions if that is at most {PERPLEXITY_TOLERANCE:g} times the "
    f"unpatched model's inside the original length; it keeps it up to the first stretch where it is more. Of the arms "
    f"that keep it furthest, the verdict names the one with the lowest perplexity inside the original length, and "
    f"says how many passkeys it finds in longer prompts than that, and how many the unpatched model finds in the same "
    f"prompts."
)


def verdict(groups: dict[float, list[Row]], settings: Settings) -> str:
    """One sentence: which arm keeps its perplexity over the longest context, at what short-context cost, by `RULE`."""
    original = settings.original_length
    every = [row for rows in groups.values() for row in rows]
    alone = max((row for row in every if row.arm == UNPATCHED), key=lambda row: row.reach)
    patched = [row for row in every if row.arm != UNPATCHED]
    if not patched:
        return f"Unpatched, the model keeps its perplexity to {alone.keeps:,} tokens of {alone.reach:,}."
    best = max(patched, key=lambda row: (row.keeps, -row.inside))
    if best.keeps <= max(original, alone.keeps):
        return (
            f"No arm keeps its perplexity further than the unpatched model, which does to {alone.keeps:,} tokens of "
            f"{alone.reach:,}."
        )
    sentence = (
        f"{best.arm.label} keeps its perplexity over the longest context: {best.keeps:,} tokens, "
        f"{best.keeps / original:g} times the original length, at {best.change:+.1%} inside it; the unpatched model "
        f"keeps it to {alone.keeps:,}."
    )
    if not best.passkeys_beyond[1]:
        return sentence
    same = groups[best.arm.factor][0]  # unpatched, on the same prompts
    found, found_alone = share_text(best.passkeys_beyond), share_text(same.passkeys_beyond)
    return f"{sentence} Passkeys found beyond the original length: {found} against {found_alone}."


def perplexity_text(value: float) -> str:
    """Three digits or more, short enough for a column."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def share_text(counted: tuple[int, int]) -> str:
    """A percentage, or a dash where nothing was asked for."""
    found, asked = counted
    return f"{found / asked:.0%}" if asked else "-"
