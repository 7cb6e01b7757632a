"""The tables that the page and the Markdown share: what is compared, row by row, as text that neither has escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ropescale.evals.report.findings import Findings, Row, Share, has_exact, main_score, share
from ropescale.evals.report.wording import (
    NOTHING,
    band_text,
    bounds_text,
    count_text,
    estimate_text,
    factor_text,
    gain_interval_text,
    gain_text,
    length_text,
    method_text,
    perplexity_text,
    points_text,
    rate_text,
    ratio_interval_text,
    ratio_text,
    reach_text,
    score_text,
    share_text,
)
from ropescale.evals.results import UNPATCHED, Arm, Cell
from ropescale.evals.statistics import Estimate
from ropescale.evals.tasks.base import Loss, Short, Task
from ropescale.pages.elements import shown


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One value of a table: what stands first, what stands beneath it, and whether it is its column's best."""

    text: str
    small: Sequence[str] = ()
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table with a line per arm, in groups of one factor, each opening with the unpatched model."""

    columns: Sequence[str]
    groups: Sequence[Sequence[tuple[Arm, Sequence[Entry]]]]


EMPTY = Entry(text=NOTHING)


def comparison(findings: Findings) -> Comparison:
    """Everything about every arm: the best patched arm of a factor is marked in each column."""
    groups = list(findings.groups.values()) or [(findings.alone,)]
    bands = sorted({band for rows in groups for row in rows for band in row.bands}, key=lambda s: s[::-1])
    inside = any(row.inside is not None for rows in groups for row in rows)
    original = length_text(findings.settings.original_length)
    by_position = findings.source is not None and findings.source.by_position
    columns = [
        *([f"perplexity to {original}" if by_position else f"perplexity inside {original}"] if inside else []),
        *(band_text(band) for band in bands),
        *([f"retrieval to {original}, gain in points"] if _any(groups, "retrieval_inside") else []),
        *([f"retrieval beyond {original}, gain in points"] if _any(groups, "retrieval_beyond") else []),
        *(["retrieves to"] if findings.basis else []),
        *(["keeps perplexity to"] if _any(groups, "keeps") else []),
    ]
    return Comparison(columns=columns, groups=[_group(findings, rows, groups, bands, inside) for rows in groups])


def _any(groups: Sequence[Sequence[Row]], name: str) -> bool:
    return any(getattr(row, name) is not None for rows in groups for row in rows)


def _group(
    findings: Findings,
    rows: Sequence[Row],
    groups: Sequence[Sequence[Row]],
    bands: Sequence[tuple[int, int]],
    inside: bool,
) -> list[tuple[Arm, list[Entry]]]:
    columns: list[list[Entry]] = []
    if inside:
        marks = _marks(rows, [row.inside for row in rows], lowest=True)
        columns.append([_inside(row, best) for row, best in zip(rows, marks, strict=True)])
    for band in bands:
        values = [row.bands.get(band) for row in rows]
        marks = _marks(rows, values, lowest=True)
        columns.append([Entry(text=perplexity_text(v), best=best) for v, best in zip(values, marks, strict=True)])
    for name in ("inside", "beyond"):
        if _any(groups, f"retrieval_{name}"):
            shares = [getattr(row, f"retrieval_{name}") for row in rows]
            gains = [getattr(row, f"gain_{name}") for row in rows]
            marks = _marks(rows, [None if one is None else one.rate for one in shares])
            columns.append([_retrieved(*each) for each in zip(shares, gains, marks, strict=True)])
    for name, wanted in (("reads", bool(findings.basis)), ("keeps", _any(groups, "keeps"))):
        if wanted:
            lengths = [getattr(row, name) for row in rows]
            marks = _marks(rows, lengths)
            columns.append([_reach(findings, row, name, best) for row, best in zip(rows, marks, strict=True)])
    return [(row.arm, [column[i] for column in columns]) for i, row in enumerate(rows)]


def _reach(findings: Findings, row: Row, name: str, best: bool) -> Entry:
    """An effective length as it was observed, and its bounds where these say something else."""
    least, standing = getattr(row, f"{name}_from"), findings.decision.standing(row.arm)
    observed = reach_text(getattr(row, name), least)
    bounds = bounds_text(standing.found_to if name == "reads" else standing.read_to, least)
    return Entry(text=observed, small=() if bounds in ("", observed) else (bounds,), best=best)


def _inside(row: Row, best: bool) -> Entry:
    change = estimate_text(ratio_text(row.change), ratio_interval_text(row.change))
    return Entry(text=perplexity_text(row.inside), small=() if row.change is None else (change,), best=best)


def _retrieved(share: Share | None, gain: Estimate | None, best: bool) -> Entry:
    if share is None:
        return EMPTY
    gained = () if gain is None else (estimate_text(points_text(gain), gain_interval_text(gain)),)
    return Entry(text=rate_text(share.rate), small=(count_text(share), *gained), best=best)


def _marks(rows: Sequence[Row], values: Sequence[float | None], lowest: bool = False) -> list[bool]:
    """Which of the patched arms is best; none where there is no choice."""
    known = [
        value
        for row, value in zip(rows, values, strict=True)
        if row.arm != UNPATCHED and value is not None and math.isfinite(value)
    ]
    if len(known) < 2 or min(known) == max(known):
        return [False] * len(rows)
    best = min(known) if lowest else max(known)
    return [row.arm != UNPATCHED and value == best for row, value in zip(rows, values, strict=True)]


def table_by_length(findings: Findings, task: Task) -> Comparison:
    """A task by length: perplexity with its change against the unpatched model on the same tokens, or scores by both
    rules over all depths.
    """
    lengths = findings.lengths(UNPATCHED, task)
    entry = partial(_loss, findings) if isinstance(task, Loss) else _score
    lines = [[_entry(entry, findings.at(arm, task, n)) for n in lengths] for arm in findings.arms]
    return Comparison(columns=[length_text(length) for length in lengths], groups=_by_factor(findings, lines))


def short_table(findings: Findings, tasks: Sequence[Short]) -> Comparison:
    """Tasks without a length: what the harness reports first, and the change against the unpatched model."""
    entry = partial(_short, findings)
    lines = [[_entry(entry, findings.at(arm, task)) for task in tasks] for arm in findings.arms]
    return Comparison(columns=[shown(task.name, 40) for task in tasks], groups=_by_factor(findings, lines))


def _entry(of: Callable[[Cell], Entry], cell: Cell | None) -> Entry:
    return EMPTY if cell is None else of(cell)


def _loss(findings: Findings, cell: Cell) -> Entry:
    change = findings.change(cell)
    said = () if change is None else (estimate_text(ratio_text(change), ratio_interval_text(change)),)
    return Entry(text=perplexity_text(cell.perplexity), small=said)


def _score(cell: Cell) -> Entry:
    exact = (f"exact {rate_text(share(cell, 'exact').rate)}",) if has_exact(cell) else ()
    return Entry(text=share_text(share(cell)), small=exact)


def _short(findings: Findings, cell: Cell) -> Entry:
    main = main_score(cell)
    if main is None:
        return EMPTY
    if cell.arm == UNPATCHED:
        return Entry(text=score_text(cell), small=(shown(main[0], 30),))
    gain = findings.gain(cell)
    said = () if gain is None else (estimate_text(gain_text(gain), gain_interval_text(gain)),)
    return Entry(text=score_text(cell), small=said)


def _by_factor(findings: Findings, entries: Sequence[Sequence[Entry]]) -> list[list[tuple[Arm, Sequence[Entry]]]]:
    """Lines of all finished arms: the unpatched model alone, then a group for each factor."""
    groups: dict[float, list[tuple[Arm, Sequence[Entry]]]] = {}
    for arm, line in zip(findings.arms, entries, strict=True):
        groups.setdefault(0.0 if arm == UNPATCHED else arm.factor, []).append((arm, line))
    return list(groups.values())


def heads(arm: Arm, findings: Findings) -> tuple[str, str]:
    """The two columns in which every table names an arm: method, factor."""
    return method_text(arm, findings), factor_text(arm)
