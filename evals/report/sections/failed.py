"""A few wrong replies of every arm, so that a reader sees how it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ropescale.evals.report.findings import Findings, failures
from ropescale.evals.report.wording import arm_text, rate_text, tokens_text
from ropescale.evals.results import Arm
from ropescale.pages.elements import Line, Value, details, paragraph, shown, table

FAILURES = 3  # shown per arm and task
FAILURES_IN_ALL = 400  # keeps the page below 3 MB whatever a model says
REPLY = 240  # characters of a reply that are shown


def failed(findings: Findings) -> str:
    """A few wrong replies per arm and task, spread over the lengths."""
    missed: dict[Arm, dict[str, list[tuple[int | None, Mapping[str, Any]]]]] = {}
    for arm in findings.arms:
        for task, cell in findings.cells(arm):
            for sample in failures(cell):
                missed.setdefault(arm, {}).setdefault(task.name, []).append((cell.length, sample))
    total = sum(len(found) for tasks in missed.values() for found in tasks.values())
    if not total:
        return ""
    pairs = sum(len(tasks) for tasks in missed.values())
    limit = max(1, min(FAILURES, FAILURES_IN_ALL // pairs))
    left = FAILURES_IN_ALL
    parts, count = [], 0
    for arm, tasks in missed.items():
        groups = []
        for name, found in tasks.items():
            chosen = _spread(found, min(limit, left))
            left -= len(chosen)
            count += len(chosen)
            groups.append([_failure(name, length, sample) for length, sample in chosen])
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


def _failure(task: str, length: int | None, sample: Mapping[str, Any]) -> Line:
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
