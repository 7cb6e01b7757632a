"""Every arm against the unpatched model: how far each reaches, and everything about each."""

from __future__ import annotations

from ropescale.evals.report.elements import comparison_table, reach_cell
from ropescale.evals.report.findings import Findings
from ropescale.evals.report.tables import comparison, heads
from ropescale.evals.report.verdict import rules
from ropescale.evals.report.wording import base_model, tokens_text
from ropescale.evals.results import UNPATCHED
from ropescale.pages.elements import Line, Value, paragraph, table


def effective_lengths(findings: Findings) -> str:
    """How far every arm reaches, as bars, and the rule."""
    rows = [findings.alone, *findings.patched]
    if all(row.reads is None and row.keeps is None for row in rows):
        return ""
    original, longest = findings.settings.original_length, max(row.reach for row in rows)
    groups: list[list[Line]] = []
    for same in [[findings.alone], *([r for r in rs if r.arm != UNPATCHED] for rs in findings.groups.values())]:
        lines = []
        for row in same:
            reads = [reach_cell(row.reads, row.reads_from, original, longest)] if findings.basis else []
            keeps = [reach_cell(row.keeps, row.keeps_from, original, longest)] if findings.source else []
            tested = [Value(text=tokens_text(row.reach))]
            lines.append(
                Line(
                    heads=heads(row.arm, findings),
                    values=[*reads, *keeps, *tested],
                    css="pick" if row is findings.best else "",
                )
            )
        groups.append(lines)
    columns = [
        "method",
        "factor",
        *(["by retrieval (tokens)"] if findings.basis else []),
        *(["by perplexity (tokens)"] if findings.source else []),
        "tested to",
    ]
    caption = f"Effective length of each arm as observed; the tick marks the original {original:,} tokens"
    return table(caption, columns, groups) + "".join(paragraph([rule], "note") for rule in rules(findings))


def arms(findings: Findings) -> str:
    """The comparison, and what it is of."""
    said = [
        f"Compare within a factor: there all arms read the same tokens and answer the same prompts, and "
        f"{base_model(findings)} stands first. In bold: the best patched arm of its factor. Beneath a value: how many "
        f"of how many, and the change against {base_model(findings)} with its 95% interval by paired bootstrap. "
        f"Lengths are in tokens.",
    ]
    if findings.source is not None and findings.source.told:
        said.append(findings.source.told)
    if findings.basis:
        said.append("Retrieval: all prompts of the tasks named above, each counting alike.")
    return paragraph(said) + comparison_table(
        f"Every arm against {base_model(findings)}", comparison(findings), findings, findings.best
    )
