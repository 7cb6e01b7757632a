"""report.md, and the section and metadata for a model card, from the same sentences and tables as the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape

from huggingface_hub import EvalResult, ModelCardData

from ropescale.evals.report.findings import Findings, main_score, share
from ropescale.evals.report.tables import Comparison, comparison, heads, short_table, table_by_length
from ropescale.evals.report.verdict import reasons, rules, verdict
from ropescale.evals.report.wording import arm_text, base_model, base_text, command_text, filled, left_out
from ropescale.evals.results import UNPATCHED, Arm
from ropescale.evals.tasks.base import Foreign, Loss, Task
from ropescale.pages.elements import shown
from ropescale.version import __version__

SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))")


def plain(value: object) -> str:
    """Text from outside on one line of Markdown, as text."""
    return SPECIAL.sub(r"\\\1", escape(" ".join(shown(value).split()), quote=False))


def report_markdown(findings: Findings) -> str:
    """The verdict, its reasons and all tables."""
    settings = findings.settings
    parts = [
        f"# {plain(verdict(findings))}",
        _paragraph(reasons(findings)),
        _paragraph(left_out(findings)),
        *(f"<sub>{plain(rule)}</sub>" for rule in rules(findings)),
        "## All arms",
        f"Compare within a factor. In bold: the best patched arm of its factor. Beside a value: counts, and the "
        f"change against {base_model(findings)} with its 95% interval. The original length is "
        f"{settings.original_length:,} tokens.",
        _table(comparison(findings), findings),
    ]
    for loss in findings.losses:
        if loss.curve == "length":
            parts += _by_length(findings, loss)
    for task in findings.retrieval:
        parts += [f"## {plain(task.name)}", _table(table_by_length(findings, task), findings)]
    for loss in findings.losses:
        if not loss.curve:
            parts += _by_length(findings, loss)
    for title, foreign in (("Short prompts", False), ("Tasks of the harness", True)):
        if short := [task for task in findings.short if isinstance(task, Foreign) == foreign]:
            parts += [f"## {title}", _table(short_table(findings, short), findings)]
    session = findings.results.session
    parts += [
        "## How this was made",
        _code(session.command),
        f"{plain(settings.model)}, {plain(settings.form)}, parameters {plain(settings.weights)}, seed "
        f"{settings.seed}, texts {plain(settings.texts)}, original length {settings.original_length:,} tokens, "
        f"existing {plain(settings.existing)}, layers {plain(settings.layers)}; "
        + ", ".join(f"{plain(name)} {plain(number)}" for name, number in settings.versions.items())
        + f"; {plain(session.processor)}, {plain(session.device)}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_length(findings: Findings, task: Loss) -> list[str]:
    """The section of a perplexity that has one figure a length."""
    said = plain(filled(task.brief, findings, task))
    return [f"## {plain(task.heading)}", said, _table(table_by_length(findings, task), findings)]


def model_card(findings: Findings) -> str:
    """A section to paste into a model card, under the metadata that the hub reads for the recommended arm."""
    best, settings = findings.best, findings.settings
    parts = ["## Context extension", plain(verdict(findings))]
    if best is not None:
        target = int(best.arm.factor * settings.original_length)
        call = command_text(best.arm, findings)
        modules = [name for name in ("peft", "ropescale") if f"{name}." in call]
        parts += [
            f"The context was extended from {settings.original_length:,} to {target:,} tokens with the Python package "
            f"ropescale:"
            if not best.arm.unextended
            else f"This is the model with the adapter {plain(best.arm.adapter)}, its context as it was:",
            _code("".join(f"import {name}\n" for name in modules) + f"\n{call}", "python"),
        ]
    elif settings.base:
        parts += [
            f"The checkpoint was evaluated {plain(base_text(findings))}, original length {settings.original_length:,} "
            f"tokens."
        ]
    parts += [
        _paragraph(reasons(findings)),
        _table(comparison(findings), findings),
        *(f"<sub>{plain(rule)}</sub>" for rule in rules(findings)),
        f"Measured with ropescale {plain(settings.versions.get('ropescale', __version__))} on "
        f"{plain(settings.model)} ({plain(settings.form)}), seed {settings.seed}.",
    ]
    return _front_matter(findings) + "\n\n".join(part for part in parts if part) + "\n"


def eval_results(findings: Findings) -> list[EvalResult]:
    """What the hub's model index holds of the recommended arm, or of a checkpoint that was saved extended."""
    arm = _carded(findings)
    if arm is None:
        return []
    found = []
    for task, cell in findings.cells(arm):
        if isinstance(task, Loss) and task.by_position:
            continue
        if isinstance(task, Loss):
            main = ("perplexity", cell.perplexity)
        elif cell.length is not None:
            main = ("accuracy", share(cell).rate)
        elif (first := main_score(cell)) is not None:
            main = ("accuracy" if first[0] == "acc" else first[0], first[1])
        else:
            continue
        if math.isfinite(main[1]):
            found.append(_result(task, cell.length, *main))
    return found


def _carded(findings: Findings) -> Arm | None:
    """The arm that a model card is about; None where no arm is recommended and the model is as pretrained."""
    if findings.best is not None:
        return findings.best.arm
    return UNPATCHED if findings.settings.base else None


def _result(task: Task, length: int | None, metric: str, value: float) -> EvalResult:
    identifier = re.sub(r"[^\w.-]", "_", shown(task.name, 60))
    return EvalResult(
        task_type="text-generation",
        dataset_type=identifier if length is None else f"ropescale_{identifier}",
        dataset_name=shown(task.name, 60) if length is None else f"{shown(task.name, 60)} at {length:,} tokens",
        dataset_config=None if length is None else str(length),
        metric_type=shown(metric, 40),
        metric_value=round(value, 6),
        metric_name=shown(metric, 40) if length is None else f"{shown(metric, 40)} at {length:,} tokens",
    )


def _front_matter(findings: Findings) -> str:
    results = eval_results(findings)
    arm = _carded(findings)
    if not results or arm is None:
        return ""
    name = f"{shown(findings.settings.model, 80)} ({arm_text(arm, findings)})"
    return f"---\n{ModelCardData(model_name=name, eval_results=results).to_yaml()}\n---\n\n"


def _paragraph(sentences: Sequence[str]) -> str:
    return " ".join(plain(sentence) for sentence in sentences)


def _code(value: object, language: str = "") -> str:
    """A fenced block whose fence is longer than any in the text."""
    body = shown(value)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def _table(made: Comparison, findings: Findings) -> str:
    """A comparison as a table of Markdown; small print stands beside its value."""
    columns = ["method", "factor", *made.columns]
    lines = [f"| {' | '.join(map(plain, columns))} |", f"|---|---|{'---:|' * len(made.columns)}"]
    for group in made.groups:
        for arm, entries in group:
            cells = []
            for entry in entries:
                value = f"**{plain(entry.text)}**" if entry.best else plain(entry.text)
                cells.append(" · ".join([value, *map(plain, entry.small)]))
            lines.append(f"| {' | '.join([*map(plain, heads(arm, findings)), *cells])} |")
    return "\n".join(lines)
