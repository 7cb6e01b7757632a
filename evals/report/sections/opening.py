"""What stands above the sections: the figures behind the verdict, its reasons, and the call."""

from __future__ import annotations

from ropescale.evals.report.elements import code
from ropescale.evals.report.findings import Findings
from ropescale.evals.report.verdict import reasons
from ropescale.evals.report.wording import (
    base_text,
    command_text,
    gain_interval_text,
    gain_text,
    perplexity_text,
    rate_text,
    ratio_interval_text,
    ratio_text,
    reach_text,
    tells,
)
from ropescale.pages.elements import shown, text, tiles


def opening(findings: Findings) -> str:
    """Reasons, tiles, and the call that makes the recommended arm."""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in reasons(findings))
    call = "" if findings.best is None else code(command_text(findings.best.arm, findings))
    return "\n".join(filter(None, (f'<ul class="reasons">{items}</ul>' if items else "", _tiles(findings), call)))


def _tiles(findings: Findings) -> str:
    """The figures behind the verdict, of the recommended arm or of the unpatched model."""
    row, alone = findings.best or findings.alone, findings.alone
    same = findings.groups[row.arm.factor][0] if findings.best else alone
    original, named = findings.settings.original_length, base_text(findings)
    figures: list[tuple[str, str, str]] = []
    versus = f"{named} {reach_text(alone.reads, alone.reads_from)}" if findings.best else named
    if row.reads is not None:
        figures.append(("Effective length by retrieval, observed", reach_text(row.reads, row.reads_from), versus))
    versus = f"{named} {reach_text(alone.keeps, alone.keeps_from)}" if findings.best else named
    if row.keeps is not None:
        figures.append(("Effective length by perplexity, observed", reach_text(row.keeps, row.keeps_from), versus))
    if row.retrieval_beyond is not None:
        before = f"{named} {rate_text(same.retrieval_beyond.rate)}" if same.retrieval_beyond else ""
        figures.append(
            (
                f"Retrieval beyond {original:,} tokens",
                rate_text(row.retrieval_beyond.rate),
                before if findings.best else named,
            )
        )
    if row.change is not None:
        figures.append(
            (
                f"Perplexity inside {original:,} tokens",
                ratio_text(row.change),
                _interval(ratio_interval_text(row.change)),
            )
        )
    elif row.inside is not None:
        figures.append((f"Perplexity inside {original:,} tokens", perplexity_text(row.inside), named))
    for task in findings.short[:1]:
        gain = findings.gain(findings.at(row.arm, task)) if tells(findings, task) else None
        if gain is not None:
            said = _interval(gain_interval_text(gain))
            figures.append((f"Short prompts: {shown(task.name, 30)}", gain_text(gain), said))
    return tiles(figures)


def _interval(interval: str) -> str:
    return f"95% interval {interval}" if interval else ""
