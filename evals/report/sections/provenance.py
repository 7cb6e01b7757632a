"""What was done to the model, and how the results came about."""

from __future__ import annotations

import json
from typing import Any

from ropescale.evals.report.findings import Findings
from ropescale.evals.report.tables import heads
from ropescale.evals.report.wording import arm_text
from ropescale.evals.results import RECORD, Arm, Session
from ropescale.pages.elements import Line, Value, details, facts, paragraph, shown, table, text

DUMP = 12_000  # characters of a record that are shown
SESSIONS = 12  # of which the date is shown


def records(findings: Findings) -> str:
    """The record that patching leaves, of every arm."""
    parts = []
    for arm in findings.arms:
        cell = findings.results.cell(arm, RECORD)
        if cell is not None and cell.record is not None:
            dump = json.dumps(cell.record, indent=2, ensure_ascii=False)
            parts.append(details(arm_text(arm, findings), f'<pre class="wrap">{text(dump, DUMP)}</pre>', long=True))
    if not parts:
        return ""
    return paragraph(["The record that patching leaves, one per arm."]) + "".join(parts)


def provenance(findings: Findings) -> str:
    """Command, settings, versions and hardware of the last session; earlier ones by their date."""
    settings, results = findings.settings, findings.results
    session = results.session
    seconds = sum(timing.seconds for timing in results.timings)
    tokens = sum(timing.tokens for timing in results.timings)
    dates = [date(session) for session in results.sessions[-SESSIONS:]]
    more = len(results.sessions) - len(dates)
    rows = {
        "model": f"{settings.model} ({settings.form}, parameters {settings.weights})",
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
        "processor": f"{session.processor}, {session.cores} cores, {session.threads} threads",
        "device": str(session.device),
        "system": f"{session.system}, Python {session.python}",
        "compute time": f"{_duration(seconds)} in {len(results.timings):,} cells, {tokens:,} tokens read",
        "sessions": (f"{more} earlier; " if more else "") + ", ".join(dates),
    }
    return (
        f'<pre class="wrap">{text(session.command)}</pre>'
        + facts("Settings, versions and hardware", {name: shown(value, 600) for name, value in rows.items()})
        + _times(findings)
    )


def _times(findings: Findings) -> str:
    """Seconds by arm and task."""
    spent: dict[tuple[Arm, str], float] = {}
    for timing in findings.results.timings:
        key = (timing.arm, timing.task)
        spent[key] = spent.get(key, 0.0) + timing.seconds
    tasks = [task.name for task in findings.tasks]
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


def date(session: Session) -> str:
    """When a session began, to the minute."""
    return (session.date or "").replace("T", " ")[:16] + " UTC"
