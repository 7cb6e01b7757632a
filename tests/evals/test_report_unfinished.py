"""The report on what is not finished or damaged."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from evaluations import lines, rewrite
from reports import findings_of, json_of, page_of

from ropescale.errors import InvalidArgumentError
from ropescale.evals import report
from ropescale.evals.results import Arm

# what is not finished, or damaged


def test_an_unfinished_arm_is_named_and_left_out(folder: Path) -> None:
    rewrite(folder, lines(folder)[:-1])
    findings = findings_of(folder)
    assert [arm.label for arm in findings.unfinished] == ["yarn x4"]
    assert "Not finished, so left out: yarn x4." in page_of(folder).text
    assert findings.best is not None
    assert findings.best.arm == Arm(method="ntk", factor=4.0)


def test_a_task_that_has_not_begun_is_named(folder: Path) -> None:
    rewrite(folder, [cell for cell in lines(folder) if cell["task"] != "needle"])
    assert "Not run yet: needle." in page_of(folder).text


def test_an_unpatched_model_that_is_not_finished_is_refused(folder: Path) -> None:
    gone = ("none", "passkey", 256)
    rewrite(folder, [cell for cell in lines(folder) if (cell["method"], cell["task"], cell.get("length")) != gone])
    with pytest.raises(InvalidArgumentError) as caught:
        report.write(folder)
    assert str(caught.value) == (
        f"results: the unpatched model must be finished, since every arm is compared with it, got passkey at 256 "
        f"missing in {str(folder)!r}; give the same command again to go on"
    )
    assert not (folder / "report.html").exists()


def test_a_folder_without_a_cell_is_refused(folder: Path) -> None:
    rewrite(folder, [])
    with pytest.raises(InvalidArgumentError) as caught:
        report.write(folder)
    assert str(caught.value) == (
        f"results: the unpatched model must be finished, since every arm is compared with it, got all missing in "
        f"{str(folder)!r}; give the same command again to go on"
    )


@pytest.mark.parametrize(
    ("task", "spoil", "fault"),
    [
        ("passkey", lambda cell: cell.pop("samples"), "no list of samples"),
        ("passkey", lambda cell: cell["samples"][0].pop("score"), "a sample without score"),
        ("perplexity", lambda cell: cell["samples"][0].pop("nll"), "a sample without nll"),
        ("perplexity", lambda cell: cell["samples"][0].update(nll=[1.0]), "nll that is not a number"),
        ("longppl", lambda cell: cell["samples"][0].update(tokens=None), "tokens that is not a number"),
        ("position", lambda cell: cell["samples"][0].update(nll=1.0), "nll that is not a list"),
        ("position", lambda cell: cell["samples"][0]["nll"].pop(), "edges that do not fit the losses"),
        ("record", lambda cell: cell.pop("record"), "no record"),
    ],
)
def test_a_damaged_cell_is_refused_in_words(folder: Path, task: str, spoil: Any, fault: str) -> None:
    cells = lines(folder)
    spoil(next(cell for cell in cells if cell["task"] == task))
    rewrite(folder, cells)
    with pytest.raises(InvalidArgumentError) as caught:
        report.write(folder)
    assert str(caught.value) == (
        f"results: every cell in {str(folder)!r} must be as an evaluation wrote it, got {fault} in {task!r}; "
        f"remove its line from results.jsonl and give the same command again"
    )


def test_losses_that_are_no_numbers_are_dashes_and_null(folder: Path) -> None:
    cells = lines(folder)
    for cell in cells:
        if cell["method"] == "linear" and cell["task"] in ("position", "perplexity"):
            for sample in cell["samples"]:
                broken = cell["task"] == "position"
                sample["nll"] = [math.nan] * len(sample["nll"]) if broken else math.inf
    rewrite(folder, cells)
    linear = json_of(folder)["factors"][0]["rows"][1]
    assert linear["perplexity_inside"] is None
    assert linear["effective_length_perplexity"] == 0
    assert json_of(folder, "evaluate.json")["method"] == "yarn"
    assert not re.search(r"\b(nan|inf)\b", page_of(folder).text)
    assert not re.search(r"\b(nan|inf)\b", (folder / "report.md").read_text())
