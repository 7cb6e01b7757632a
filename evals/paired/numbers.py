"""comparison.json: everything that is stated of two folders, for machines; no value is ever a bare NaN or Infinity."""

from __future__ import annotations

import math
from typing import Any

from ropescale.evals.paired.differences import Claim, Differences, Row
from ropescale.evals.paired.pairing import Arms, unlike
from ropescale.evals.paired.wording import heading, left_out, reasons, rules, untold
from ropescale.evals.statistics import Estimate

FORMAT = 1  # of comparison.json; another number where a reader of this one would misunderstand


def differences_numbers(made: Differences) -> dict[str, Any]:
    """All of it."""
    one, other = made.pairing.folders
    return {
        "format": FORMAT,
        "a": str(one.folder),
        "b": str(other.folder),
        "verdict": heading(made),
        "reasons": reasons(made),
        "untold": untold(made),
        "left_out": left_out(made),
        "rules": rules(made),
        "settings": {name: {"a": ours, "b": theirs} for name, (ours, theirs) in unlike(one, other).items()},
        "paired_by": "digest" if made.pairing.digests else "place and answer",
        "claims": [_claim(claim) for claim in made.claims],
        "rows": [_row(row) for row in made.rows],
    }


def _arms(arms: Arms) -> dict[str, Any]:
    return {letter: {"method": arm.method, "factor": arm.factor} for letter, arm in zip(("a", "b"), arms, strict=True)}


def _claim(claim: Claim) -> dict[str, Any]:
    told = "better" if claim.better_by else "worse" if claim.worse_by else "opposed" if claim.gained.opposed else ""
    return {
        "arms": _arms(claim.arms),
        "about": claim.about if claim.task is None else claim.task.name,
        "to": claim.to,
        "told": told or ("alike" if claim.alike else "nothing"),
        "differences": [
            {"measure": one.measure, **_estimate(one.estimate), "compared": one.compared} for one in claim.gained.known
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "arms": _arms(row.arms),
        "task": row.task.name,
        "length": row.length,
        "band": row.band,
        "measure": "perplexity" if row.of_losses else "score",
        "a": _number(row.before),
        "b": _number(row.after),
        "change": {"kind": "ratio" if row.of_losses else "difference", **_estimate(row.change)},
        "compared": row.count,
        "in_a_alone": row.alone[0],
        "in_b_alone": row.alone[1],
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"value": _number(estimate.value), "low": _number(estimate.low), "high": _number(estimate.high)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
