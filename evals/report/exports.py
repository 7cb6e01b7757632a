"""report.json, everything that the tables show for machines, and evaluate.json, flat metrics of the recommended arm.

No value is ever a bare NaN or Infinity, which JSON does not know: such a value is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ropescale.evals.decision import Decision
from ropescale.evals.decision.comparison import Difference
from ropescale.evals.report.findings import Findings, Row, Share, has_exact, position_perplexities, share
from ropescale.evals.report.verdict import reasons, rules, verdict
from ropescale.evals.report.wording import left_out
from ropescale.evals.results import RECORD, Cell
from ropescale.evals.statistics import PERPLEXITY_TOLERANCE, RULER_THRESHOLD, Estimate
from ropescale.evals.tasks.base import Loss, Task

FORMAT = 1  # of report.json; another number where a reader of this one would misunderstand


def report_json(findings: Findings) -> str:
    """The whole report as JSON."""
    settings, best = findings.settings, findings.best
    return _dumped(
        {
            "format": FORMAT,
            "verdict": verdict(findings),
            "reasons": reasons(findings),
            "rules": rules(findings),
            "left_out": left_out(findings),
            "recommended": None if best is None else asdict(best.arm),
            "decision": _decision(findings.decision),
            "thresholds": {"retrieval": RULER_THRESHOLD, "perplexity": PERPLEXITY_TOLERANCE},
            "retrieval_basis": [task.name for task in findings.basis],
            "perplexity_source": None if findings.source is None else findings.source.name,
            "unpatched": _row(findings.alone),
            "factors": [
                {"factor": factor, "rows": [_row(row) for row in rows]} for factor, rows in findings.groups.items()
            ],
            "cells": [_cell(findings, task, cell) for arm in findings.arms for task, cell in findings.cells(arm)],
            "records": [
                {**asdict(arm), "record": cell.record}
                for arm in findings.arms
                if (cell := findings.results.cell(arm, RECORD)) is not None
            ],
            "settings": {**asdict(settings), "lengths": list(settings.lengths)},
            "sessions": [session.line for session in findings.results.sessions],
            "seconds": math.fsum(timing.seconds for timing in findings.results.timings),
        }
    )


def evaluate_json(findings: Findings) -> str:
    """Metrics of the recommended arm (of the unpatched model where there is none) as `evaluate.save` lays them out.

    What that function would read from the running process is here that of the evaluation, or null where unknown.
    """
    row = findings.best or findings.alone
    session = findings.results.session
    values: dict[str, Any] = {
        "effective_length_retrieval": row.reads,
        "effective_length_perplexity": row.keeps,
        "perplexity_inside": row.inside,
        "perplexity_inside_ratio": None if row.change is None else row.change.value,
        "retrieval_inside": None if row.retrieval_inside is None else row.retrieval_inside.rate,
        "retrieval_beyond": None if row.retrieval_beyond is None else row.retrieval_beyond.rate,
    }
    for task, cell in findings.cells(row.arm):
        tail = "" if cell.length is None else f"_{cell.length}"
        values |= {f"{task.name}_{name}{tail}": value for name, value in _metrics(task, cell).items()}
    return _dumped(
        {
            **values,
            "model": findings.settings.model,
            "method": row.arm.method,
            "factor": row.arm.factor,
            "original_length": findings.settings.original_length,
            "base": findings.settings.base or None,
            "existing": findings.settings.existing,
            "layers": findings.settings.layers,
            "seed": findings.settings.seed,
            "_timestamp": session.date,
            "_git_commit_hash": None,
            "_evaluate_version": None,
            "_python_version": session.python,
            "_interpreter_path": None,
            "_ropescale_version": findings.settings.versions.get("ropescale"),
        }
    )


def _metrics(task: Task, cell: Cell) -> dict[str, float]:
    """Name -> value of what a cell measured."""
    if isinstance(task, Loss):
        return {task.metric: position_perplexities(cell)[1][-1] if task.by_position else cell.perplexity}
    if cell.length is None:
        return dict(cell.scores or {})
    exact = {"exact": share(cell, "exact").rate} if has_exact(cell) else {}
    return {"score": share(cell).rate, **exact}


def _row(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.arm),
        "reach": row.reach,
        "perplexity_inside": row.inside,
        "perplexity_inside_ratio": _estimate(row.change),
        "perplexity_stretches": [
            {"from": low, "to": high, "perplexity": value} for (low, high), value in row.bands.items()
        ],
        "retrieval_inside": _share(row.retrieval_inside),
        "retrieval_inside_gain": _estimate(row.gain_inside),
        "retrieval_beyond": _share(row.retrieval_beyond),
        "retrieval_beyond_gain": _estimate(row.gain_beyond),
        "retrieval_averages": {str(length): value for length, value in row.averages.items()},
        "effective_length_retrieval": row.reads,
        "effective_length_perplexity": row.keeps,
    }


def _decision(decision: Decision) -> dict[str, Any]:
    """The decision; differences in reading are in nats per token, and more is better by both measures."""
    return {
        "verdict": decision.verdict.value,
        "target_length": decision.goal,
        "tested": decision.tested,
        "leader": asdict(decision.leader),
        "ties": [asdict(tie.one.arm) for tie in decision.ties],
        "settled": decision.settled,
        "need": None if decision.need is None else asdict(decision.need),
        "standings": [
            {
                **asdict(one.arm),
                "found": one.find,
                "prompts_each": one.rounds,
                "windows": one.windows,
                "gain": _difference(one.gain),
                "read_gain": _difference(one.read_gain),
                "extends": one.extends,
                "reaches": one.reaches,
                "can_win": one.can_win,
                "dropped_by": _difference(one.dropped_by),
                "effective_length_retrieval": None if one.found_to is None else asdict(one.found_to),
                "effective_length_perplexity": None if one.read_to is None else asdict(one.read_to),
            }
            for one in decision.standings
        ],
    }


def _difference(value: Difference | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "measure": value.measure,
        "arm": asdict(value.arm),
        "against": asdict(value.against),
        **value.estimate._asdict(),
        "compared": value.compared,
    }


def _cell(findings: Findings, task: Task, cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {"task": task.name, **asdict(cell.arm), "length": cell.length}
    if isinstance(task, Loss):
        if task.by_position:
            edges, values = position_perplexities(cell)
            return {**found, "edges": edges, "perplexities": values}
        tokens = sum(one["tokens"] for one in cell.samples)
        change = findings.change(cell)
        ratio = {} if change is None else {"ratio": _estimate(change)}
        return {**found, **cell.stated, "perplexity": cell.perplexity, "tokens": tokens, **ratio}
    gain = _estimate(findings.gain(cell))
    if cell.length is None:
        return {**found, "scores": _metrics(task, cell), "gain": gain}
    depths = sorted({one["depth"] for one in cell.samples if one.get("depth") is not None})
    return {
        **found,
        "score": _share(share(cell)),
        "exact": _share(share(cell, "exact")) if has_exact(cell) else None,
        "gain": gain,
        "depths": [{"depth": depth, "score": _share(share(cell, "score", depth))} for depth in depths],
    }


def _share(value: Share | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"found": value.found, "asked": value.asked, "rate": value.rate, "interval": list(value.interval)}


def _estimate(value: Estimate | None) -> dict[str, float] | None:
    return None if value is None else value._asdict()


def _dumped(values: Mapping[str, Any]) -> str:
    return json.dumps(_numbers(values), indent=1, allow_nan=False) + "\n"


def _numbers(value: Any) -> Any:
    """The same with null for every float that is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _numbers(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(one) for one in value]
    return value
