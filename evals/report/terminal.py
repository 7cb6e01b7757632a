"""The comparison and the verdict in a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from ropescale.console import Console
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.tables import comparison, heads
from ropescale.evals.report.verdict import reasons, verdict
from ropescale.evals.report.wording import arm_text, score_text
from ropescale.evals.results import Results


def print_summary(results: Results, console: Console) -> None:
    """One line per arm in groups of one factor, the best of a group in bold; then the verdict with its reasons.

    Raises:
        InvalidArgumentError: the unpatched model is not finished.
    """
    findings = read_findings(results)
    compared = comparison(findings)
    # narrow columns: 80 characters hold the ten of the embedded model
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("method", "x"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for name in compared.columns:
        short = name.removesuffix(", gain in points").replace("perplexity", "ppl").replace("retrieval", "found")
        table.add_column(short.replace("retrieves", "finds").replace(" beyond ", " > "), justify="right")
    for group in compared.groups:
        for arm, entries in group:
            method, factor = heads(arm, findings)
            values = [Text(entry.text, style="bold" if entry.best else "") for entry in entries]
            table.add_row(Text(method), factor, *values)
        table.add_section()
    if compared.columns:
        console.print(table)
    else:  # no length was tested: what was scored instead
        for task in findings.tasks:
            for arm in findings.arms:
                for _, cell in findings.cells(arm, task):
                    if score := score_text(cell):
                        at = task.name if cell.length is None else f"{task.name} at {cell.length:,}"
                        console.print(f"{arm_text(arm, findings)}: {at} {score}", highlight=False, markup=False)
    for sentence in (verdict(findings), *reasons(findings)):
        console.print(sentence, highlight=False, markup=False)
