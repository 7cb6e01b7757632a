"""The report of an evaluation: what its results on disk say, as a page, as Markdown, for machines and for model cards.

Built from the folder alone, so it can be written again at any time, and while a run is still going. `findings` holds
numbers and no words, `verdict` what is said of the decision, `wording` what is said of arms and figures, and `tables`
the comparisons, which all formats share; `page` the HTML of which `sections` holds the parts, `markdown` the Markdown
and the model card, `exports` the JSON. No file here knows a model, or a task by its name: what is said of one, its
object says.
"""

from __future__ import annotations

from pathlib import Path

from ropescale.destinations import require_ordinary
from ropescale.evals.report.exports import evaluate_json, report_json
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.markdown import model_card, report_markdown
from ropescale.evals.report.page import page
from ropescale.evals.results import read, write_atomically

__all__ = ["write"]


def write(folder: Path, *, target_length: int | None = None) -> Path:
    """Write the report into a folder of results and return the path of its page.

    The files are report.html, report.md, report.json, model-card.md and evaluate.json. Arms that are not finished are
    named and left out; the same results give the same bytes. The verdict is about `target_length` in tokens; if that
    is not given about the one that the evaluation was asked for, else the longest tested.

    Raises:
        InvalidArgumentError: no results there, a cell that is damaged, or the unpatched model is not finished.
        CheckpointError: the folder cannot be written.
    """
    findings = read_findings(read(folder).wanted_for(target_length))
    # all is made before anything is written, so that no mixture of old and new is left behind
    texts = {
        "report.md": report_markdown(findings),
        "report.json": report_json(findings),
        "model-card.md": model_card(findings),
        "evaluate.json": evaluate_json(findings),
        "report.html": page(findings),
    }
    for name in texts:
        require_ordinary(folder / name, name="results")
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return folder / "report.html"
