"""The tables that the page and the Markdown share: what is compared, row by row, as text that neither has escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ropescale.evals.report.findings import Findings, Row, Share, cell_perplexity, share, windows_of
from ropescale.evals.report.wording import (
    NOTHING,
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
    share_text,
    stretch_text,
)
from ropescale.evals.results import UNPATCHED, Arm
from ropescale.evals.statistics import Estimate, perplexity_ratio
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
    stretches = sorted(
        {stretch for rows in groups for row in rows for stretch in row.stretches}, key=lambda s: s[::-1]
    )
    inside = any(row.inside is not None for rows in groups for row in rows)
    original = length_text(findings.settings.original_length)
    by_position = findings.source == "position"
    columns = [
        *([f"perplexity to {original}" if by_position else f"perplexity inside {original}"] if inside else []),
        *(stretch_text(stretch) for stretch in stretches),
        *([f"retrieval to {original}, gain in points"] if _any(groups, "retrieval_inside") else []),
        *([f"retrieval beyond {original}, gain in points"] if _any(groups, "retrieval_beyond") else []),
        *(["retrieves to"] if findings.basis else []),
        *(["keeps perplexity to"] if _any(groups, "keeps") else []),
    ]
    return Comparison(columns=columns, groups=[_group(findings, rows, groups, stretches, inside) for rows in groups])


def _any(groups: Sequence[Sequence[Row]], name: str) -> bool:
    return any(getattr(row, name) is not None for rows in groups for row in rows)


def _group(
    findings: Findings,
    rows: Sequence[Row],
    groups: Sequence[Sequence[Row]],
    stretches: Sequence[tuple[int, int]],
    inside: bool,
) -> list[tuple[Arm, list[Entry]]]:
    columns: list[list[Entry]] = []
    if inside:
        marks = _marks(rows, [row.inside for row in rows], lowest=True)
        columns.append([_inside(row, best) for row, best in zip(rows, marks, strict=True)])
    for stretch in stretches:
        values = [row.stretches.get(stretch) for row in rows]
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
            said = [reach_text(n, getattr(row, f"{name}_from")) for n, row in zip(lengths, rows, strict=True)]
            marks = _marks(rows, lengths)
            columns.append([Entry(text=text, best=best) for text, best in zip(said, marks, strict=True)])
    return [(row.arm, [column[i] for column in columns]) for i, row in enumerate(rows)]


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


def loss_table(findings: Findings, task: str) -> Comparison:
    """Perplexity of a task by length, with its change against the unpatched model on the same tokens."""
    lengths = findings.lengths(UNPATCHED, task)
    return Comparison(
        columns=[length_text(length) for length in lengths],
        groups=_by_factor(findings, [[_loss(findings, arm, task, n) for n in lengths] for arm in findings.arms]),
    )


def _loss(findings: Findings, arm: Arm, task: str, length: int) -> Entry:
    cell, other = findings.results.cell(arm, task, length), findings.cell(UNPATCHED, task, length)
    if cell is None:
        return EMPTY
    value = perplexity_text(cell_perplexity(cell))
    tokens = [one["tokens"] for one in cell["samples"]]
    if arm == UNPATCHED or not sum(tokens):
        return Entry(text=value)
    before, after = ([one["nll"] for one in one_cell["samples"]] for one_cell in (other, cell))
    change = perplexity_ratio(before, after, tokens, seed=findings.settings.seed, blocks=windows_of(cell))
    return Entry(text=value, small=(estimate_text(ratio_text(change), ratio_interval_text(change)),))


def retrieval_table(findings: Findings, task: str) -> Comparison:
    """Scores of a task by length and both rules, over all depths."""
    lengths = findings.lengths(UNPATCHED, task)
    return Comparison(
        columns=[length_text(length) for length in lengths],
        groups=_by_factor(findings, [[_score(findings, arm, task, n) for n in lengths] for arm in findings.arms]),
    )


def _score(findings: Findings, arm: Arm, task: str, length: int) -> Entry:
    cell = findings.results.cell(arm, task, length)
    if cell is None:
        return EMPTY
    exact = (f"exact {rate_text(share(cell, 'exact').rate)}",) if has_exact(cell) else ()
    return Entry(text=share_text(share(cell)), small=exact)


def has_exact(cell: dict[str, object]) -> bool:
    """Whether a cell's samples were scored by the stricter rule too."""
    samples = cell["samples"]
    assert isinstance(samples, list)
    return any("exact" in one for one in samples)


def short_table(findings: Findings) -> Comparison:
    """The tasks without a length: what the harness reports first, and the change against the unpatched model."""
    tasks = findings.short_tasks()
    return Comparison(
        columns=[shown(name, 40) for name in tasks],
        groups=_by_factor(findings, [[_short(findings, arm, task) for task in tasks] for arm in findings.arms]),
    )


def main_score(scores: object) -> tuple[str, float] | None:
    """The metric that stands first in a cell and its value."""
    if not isinstance(scores, dict):
        return None
    numbers = ((name, value) for name, value in scores.items() if isinstance(value, (int, float)))
    return next(((str(name), float(value)) for name, value in numbers), None)


def _short(findings: Findings, arm: Arm, task: str) -> Entry:
    cell = findings.results.cell(arm, task, None)
    main = None if cell is None else main_score(cell.get("scores"))
    if main is None:
        return EMPTY
    name, value = main
    text = f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}"
    if arm == UNPATCHED:
        return Entry(text=text, small=(shown(name, 30),))
    gain = findings.gain(arm, task)
    return Entry(text=text, small=() if gain is None else (estimate_text(gain_text(gain), gain_interval_text(gain)),))


def _by_factor(findings: Findings, entries: Sequence[Sequence[Entry]]) -> list[list[tuple[Arm, Sequence[Entry]]]]:
    """Lines of all finished arms: the unpatched model alone, then a group for each factor."""
    groups: dict[float, list[tuple[Arm, Sequence[Entry]]]] = {}
    for arm, line in zip(findings.arms, entries, strict=True):
        groups.setdefault(0.0 if arm == UNPATCHED else arm.factor, []).append((arm, line))
    return list(groups.values())


def heads(arm: Arm, findings: Findings) -> tuple[str, str]:
    """The two columns in which every table names an arm: method, factor."""
    return method_text(arm, findings), factor_text(arm)
