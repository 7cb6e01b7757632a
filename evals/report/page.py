"""The page: report.html, one file that opens from disk, with the verdict first and everything to check it."""

from __future__ import annotations

from ropescale.evals.report.elements import identifier
from ropescale.evals.report.findings import Findings
from ropescale.evals.report.sections import arms, failed, losses, opening, provenance, retrieval, short
from ropescale.evals.report.verdict import verdict
from ropescale.evals.report.wording import left_out
from ropescale.evals.tasks.base import CURVES
from ropescale.pages.document import document
from ropescale.pages.elements import paragraph, shown


def page(findings: Findings) -> str:
    """The whole report as HTML."""
    model = shown(findings.settings.model, 80)
    by_length, by_position, in_tables = (
        {
            identifier(task.name): (task.heading, losses.losses(findings, task))
            for task in findings.losses
            if task.curve == curve
        }
        for curve in CURVES
    )
    return document(
        title=f"ropescale: {model}",
        kicker=f"ropescale eval · {model} · {shown(provenance.date(findings.results.session), 40)}",
        heading=verdict(findings),
        opening="\n".join(filter(None, (opening.opening(findings), paragraph(left_out(findings), "note")))),
        sections={
            "effective": ("Effective length", arms.effective_lengths(findings)),
            "arms": ("All arms", arms.arms(findings)),
            **by_length,
            **by_position,
            **retrieval.sections(findings),
            **in_tables,
            "short": ("Short prompts", short.short(findings)),
            "harness": ("Tasks of the harness", short.of_harness(findings)),
            "failures": ("Where it fails", failed.failed(findings)),
            "records": ("What was done to the model", provenance.records(findings)),
            "made": ("How this was made", provenance.provenance(findings)),
        },
        closing="Written by ropescale from the results beside this file; report.md, report.json, model-card.md and "
        "evaluate.json say the same in other forms.",
    )
