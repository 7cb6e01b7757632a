"""report.json, everything that the tables show for machines, and evaluate.json, flat metrics of the recommended arm.

No value is ever a bare NaN or Infinity, which JSON does not know: such a value is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ropescale.evals.report.findings import (
    Findings,
    Row,
    Share,
    cell_perplexity,
    position_perplexities,
    share,
    windows_of,
)
from ropescale.evals.report.tables import has_exact, main_score
from ropescale.evals.report.wording import left_out, reasons, rules, verdict
from ropescale.evals.results import LOSS_TASKS, UNPATCHED, Arm, Cell
from ropescale.evals.statistics import PERPLEXITY_TOLERANCE, RULER_THRESHOLD, Estimate, perplexity_ratio

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
            "thresholds": {"retrieval": RULER_THRESHOLD, "perplexity": PERPLEXITY_TOLERANCE},
            "retrieval_basis": list(findings.basis),
            "perplexity_source": findings.source,
            "unpatched": _row(findings.alone),
            "factors": [
                {"factor": factor, "rows": [_row(row) for row in rows]} for factor, rows in findings.groups.items()
            ],
            "cells": [
                _cell(findings, arm, task, length)
                for arm in findings.arms
                for task in findings.tasks()
                for length in [*findings.lengths(arm, task), None]
                if findings.results.cell(arm, task, length) is not None
            ],
            "records": [
                {**asdict(arm), "record": record["record"]}
                for arm in findings.arms
                if (record := findings.results.cell(arm, "record", None)) is not None
            ],
            "settings": {**asdict(settings), "lengths": list(settings.lengths)},
            "sessions": findings.results.sessions,
            "seconds": math.fsum(float(one.get("seconds") or 0) for one in findings.results.timings),
        }
    )


def evaluate_json(findings: Findings) -> str:
    """Metrics of the recommended arm (of the unpatched model where there is none) as `evaluate.save` lays them out.

    What that function would read from the running process is here that of the evaluation, or null where unknown.
    """
    row = findings.best or findings.alone
    session = findings.results.sessions[-1] if findings.results.sessions else {}
    values: dict[str, Any] = {
        "effective_length_retrieval": row.reads,
        "effective_length_perplexity": row.keeps,
        "perplexity_inside": row.inside,
        "perplexity_inside_ratio": None if row.change is None else row.change.value,
        "retrieval_inside": None if row.retrieval_inside is None else row.retrieval_inside.rate,
        "retrieval_beyond": None if row.retrieval_beyond is None else row.retrieval_beyond.rate,
    }
    for task in findings.tasks():
        for length in [*findings.lengths(row.arm, task), None]:
            cell = findings.results.cell(row.arm, task, length)
            if cell is not None:
                tail = "" if length is None else f"_{length}"
                values |= {f"{task}_{name}{tail}": value for name, value in _metrics(task, cell).items()}
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
            "_timestamp": session.get("date"),
            "_git_commit_hash": None,
            "_evaluate_version": None,
            "_python_version": session.get("python"),
            "_interpreter_path": None,
            "_ropescale_version": findings.settings.versions.get("ropescale"),
        }
    )


def _metrics(task: str, cell: Cell) -> dict[str, float]:
    """Name -> value of what a cell measured."""
    if task == "position":
        _, values = position_perplexities(cell)
        return {"last": values[-1]}
    if task in LOSS_TASKS:
        return {"perplexity": cell_perplexity(cell)} if task != "perplexity" else {"strided": cell_perplexity(cell)}
    if cell.get("length") is None:
        scores = cell.get("scores")
        return {str(k): v for k, v in scores.items() if main_score({k: v})} if isinstance(scores, dict) else {}
    exact = {"exact": share(cell, "exact").rate} if has_exact(cell) else {}
    return {"score": share(cell).rate, **exact}


def _row(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.arm),
        "reach": row.reach,
        "perplexity_inside": row.inside,
        "perplexity_inside_ratio": _estimate(row.change),
        "perplexity_stretches": [
            {"from": low, "to": high, "perplexity": value} for (low, high), value in row.stretches.items()
        ],
        "retrieval_inside": _share(row.retrieval_inside),
        "retrieval_inside_gain": _estimate(row.gain_inside),
        "retrieval_beyond": _share(row.retrieval_beyond),
        "retrieval_beyond_gain": _estimate(row.gain_beyond),
        "retrieval_averages": {str(length): value for length, value in row.averages.items()},
        "effective_length_retrieval": row.reads,
        "effective_length_perplexity": row.keeps,
    }


def _cell(findings: Findings, arm: Arm, task: str, length: int | None) -> dict[str, Any]:
    cell = findings.cell(arm, task, length)
    found: dict[str, Any] = {"task": task, **asdict(arm), "length": length}
    if task == "position":
        edges, values = position_perplexities(cell)
        return {**found, "edges": edges, "perplexities": values}
    if task in LOSS_TASKS:
        tokens = [one["tokens"] for one in cell["samples"]]
        stated: dict[str, Any] = {name: cell[name] for name in ("window", "stride", "evaluator") if name in cell}
        found |= {**stated, "perplexity": cell_perplexity(cell), "tokens": sum(tokens)}
        if arm != UNPATCHED and sum(tokens):
            before = [one["nll"] for one in findings.cell(UNPATCHED, task, length)["samples"]]
            after = [one["nll"] for one in cell["samples"]]
            ratio = perplexity_ratio(before, after, tokens, seed=findings.settings.seed, blocks=windows_of(cell))
            found["ratio"] = _estimate(ratio)
        return found
    gain = None if arm == UNPATCHED else findings.gain(arm, task, length)
    if length is None:
        return {**found, "scores": _metrics(task, cell), "gain": _estimate(gain)}
    found |= {"score": _share(share(cell)), "exact": _share(share(cell, "exact")) if has_exact(cell) else None}
    depths = sorted({one["depth"] for one in cell["samples"] if one.get("depth") is not None})
    by_depth = [{"depth": depth, "score": _share(share(cell, "score", depth))} for depth in depths]
    return {**found, "gain": _estimate(gain), "depths": by_depth}


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
