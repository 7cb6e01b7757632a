"""Tasks without a length: what a longer context costs where none was needed, and what the harness adds."""

from __future__ import annotations

from ropescale.evals.report.elements import comparison_table
from ropescale.evals.report.findings import Findings
from ropescale.evals.report.tables import short_table
from ropescale.evals.report.wording import base_model, filled
from ropescale.evals.tasks.base import Foreign
from ropescale.pages.elements import paragraph


def short(findings: Findings) -> str:
    """Tasks of prompts that are known to be short."""
    tasks = [task for task in findings.short if not isinstance(task, Foreign)]
    if not tasks:
        return ""
    said = (
        "Tasks whose prompts are far shorter than the original length: what a longer context costs where none was "
        f"needed. {_beneath(findings)}"
    )
    own = [filled(task.text, findings, task) for task in tasks if task.text]
    made = comparison_table("Short tasks", short_table(findings, tasks), findings, findings.best)
    return paragraph([said, *own]) + made


def of_harness(findings: Findings) -> str:
    """Tasks of which nothing more is known than their scores."""
    tasks = [task for task in findings.short if isinstance(task, Foreign)]
    if not tasks:
        return ""
    said = f"Tasks as the harness has them, at whatever length their prompts are. {_beneath(findings)}"
    made = comparison_table("Tasks of the harness", short_table(findings, tasks), findings, findings.best)
    return paragraph([said]) + made


def _beneath(findings: Findings) -> str:
    return (
        f"Beneath each score: the change against {base_model(findings)} on the same questions, in percentage points, "
        f"with its 95% interval."
    )
