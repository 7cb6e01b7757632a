"""Folders of results and the report on them, as tests read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pages import Page

from ropescale.evals import report
from ropescale.evals.report.exports import evaluate_json, report_json
from ropescale.evals.report.findings import Findings, read_findings
from ropescale.evals.results import read

HOSTILE = (
    "</pre></style><script>alert('x')</script>\"'&<img src=http://example.org onerror=alert(1)>\" onload=\"alert(2)"
    "`|](http://example.org)\x00\u202e"
)


FILES = ("evaluate.json", "model-card.md", "report.html", "report.json", "report.md")


def page_of(folder: Path) -> Page:
    return Page(report.write(folder).read_text(encoding="utf-8"))


def findings_of(folder: Path) -> Findings:
    return read_findings(read(folder))


def json_of(folder: Path, name: str = "report.json") -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    made = {"report.json": report_json, "evaluate.json": evaluate_json}[name](findings_of(folder))
    loaded = json.loads(made, parse_constant=refuse)
    assert isinstance(loaded, dict)
    return loaded
