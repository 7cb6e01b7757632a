"""Tasks of a user's own, defined in a folder outside the package: like those that ship, wherever tasks are read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropescale.cli import main
from ropescale.errors import InvalidArgumentError
from ropescale.evals import grid, plan, report, tracking
from ropescale.evals.plan import Options, Plan
from ropescale.evals.results import UNPATCHED, Arm, Results
from ropescale.evals.tasks import base

OWN = Path(__file__).parents[1] / "support" / "own_tasks"
YARN = Arm(method="yarn", factor=2.0)


@pytest.fixture(autouse=True, scope="module")
def _registry() -> Iterator[None]:
    """What these tests make known is forgotten after them."""
    shipped = {task.name for task in base.every()}
    yield
    for name in base._REGISTERED.keys() - shipped:
        del base._REGISTERED[name]
    for name in [name for name in sys.modules if name.startswith("task in ")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A retrieval task and a loss task of a user's own, evaluated."""
    asked = options(
        tasks=("lookup", "lines"), lengths=(128, 256), depths=(0.0, 1.0), samples=2, windows=2, dtype="float32"
    )
    return grid.run(asked, tmp_path_factory.mktemp("own"), "ropescale eval")


def options(**given: object) -> Options:
    return Options(model="tiny", methods=("yarn",), include_path=str(OWN), **given)  # type: ignore[arg-type]


def test_they_are_listed_between_ours_and_the_harness_s() -> None:
    base.load(OWN)
    assert base.listed()[-2:] == [
        ("lines", "perplexity of the last half of each window"),
        ("lookup", "the number of a door, by depth and length"),
    ]
    assert str(base.unknown("lokup", [])).endswith("did you mean 'lookup'?")


@pytest.mark.parametrize(
    "given",
    [
        ["eval", "--help", "--include-path", str(OWN)],
        ["--import", str(OWN / "lookup" / "task.py"), "--import", str(OWN / "lines" / "task.py"), "eval", "-h"],
    ],
    ids=["--include-path", "--import"],
)
def test_the_help_lists_them(given: list[str]) -> None:
    """In a process of its own, that knows nothing of them before."""
    done = subprocess.run([sys.executable, "-m", "ropescale", *given], capture_output=True, text=True, check=True)
    assert "\n  lookup       the number of a door, by depth and length\n" in done.stdout
    assert "\n  lines        perplexity of the last half of each window\n" in done.stdout


def test_a_misspelt_one_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["eval", "tiny", "--methods", "none", "--tasks", "lokup", "--include-path", str(OWN), "--lengths", "64"]
    assert main([*given, "--dry-run"]) == 2
    assert "got 'lokup'; did you mean 'lookup'?" in capsys.readouterr().err


def test_their_cells_are_planned_by_kind() -> None:
    made = Plan.of(options(tasks=("lookup", "lines"), samples=2, windows=3, depths=(0.0, 1.0)), 128)
    yarn = {(cell.task.name, cell.length): cell.tokens for cell in made.cells if cell.arm == YARN}
    assert yarn == {
        ("lookup", 128): 2 * 2 * 128,
        ("lookup", 256): 2 * 2 * 256,
        ("lines", 128): 3 * 128,
        ("lines", 256): 3 * 256,
    }
    assert made.knobs["lookup"] == {"version": 1, "samples": 2, "depths": [0.0, 1.0]}
    assert made.knobs["lines"] == {"version": 1, "windows": 3, "texts": "sample"}


def test_options_that_they_read_are_known() -> None:
    every = ("depths", "samples", "seed", "windows", "stride", "texts", "include_path")
    assert plan.unread(options(tasks=("lookup",)), every) == ["windows", "stride", "texts"]
    assert plan.unread(options(tasks=("lines",)), every) == ["depths", "samples", "seed", "stride"]
    assert plan.unread(options(tasks=("passkey",)), ["include_path"]) == ["include_path"]


def test_every_cell_of_them_is_run_and_stored_by_kind(results: Results) -> None:
    for arm in (UNPATCHED, YARN):
        for length in (128, 256):
            replies = results.cell(arm, "lookup", length)
            assert replies is not None
            assert [one["depth"] for one in replies.samples] == [0.0, 0.0, 1.0, 1.0]
            assert all({"score", "exact", "reply", "target"} <= one.keys() for one in replies.samples)
            losses = results.cell(arm, "lines", length)
            assert losses is not None
            # the second half is scored, but for a token or a few where a cut moved
            assert all(abs(one["tokens"] - length // 2) <= 4 for one in losses.samples)


@pytest.fixture(scope="module")
def written(results: Results) -> Path:
    """The folder with its report."""
    report.write(results.folder)
    return results.folder


def test_the_report_is_about_them_as_about_ours(written: Path) -> None:
    """The verdict, its rules, a section with a figure each, tables, and figures for machines."""
    told = json.loads((written / "report.json").read_text())
    assert (told["retrieval_basis"], told["perplexity_source"]) == (["lookup"], "lines")
    assert told["verdict"].startswith("Too few prompts and windows of text to tell what does better up to 256 tokens")
    assert not any("was run" in reason or "was measured" in reason for reason in told["reasons"])
    assert any("The average is over lookup;" in rule for rule in told["rules"])
    assert any("the largest context length at which perplexity of last halves," in rule for rule in told["rules"])
    asked = {(one["task"], one["length"]) for one in told["cells"]}
    assert asked == {(task, length) for task in ("lookup", "lines") for length in (128, 256)}

    page = (written / "report.html").read_text()
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert "Lookup by depth and length" in headings
    assert "Perplexity of last halves" in headings
    assert "RULER" not in headings
    assert "The number of a door is hidden among steps and asked for at the end." in page
    assert "The last half of every window is scored." in page
    assert page.count('<table class="heat">') == 2, "a heat map an arm"
    assert "Perplexity of last halves by context length" in page

    tables = (written / "report.md").read_text()
    assert "| method | factor | perplexity inside 128 | at 256 | retrieval to 128, gain in points |" in tables
    flat = json.loads((written / "evaluate.json").read_text())
    assert {"lookup_score_128", "lookup_exact_256", "lines_perplexity_256"} <= flat.keys()


def test_trackers_get_their_figures(results: Results) -> None:
    figures = {key[0]: tracking.figures_of(cell).keys() for key, cell in results.cells.items()}
    assert figures["lines"] == {"perplexity"}
    assert figures["lookup"] == {"score", "exact"}


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(OWN / "lookup", tmp_path / "other")
    (folder / "task.py").write_text((folder / "task.py").read_text().replace('"lookup"', '"passkey"'))
    with pytest.raises(
        InvalidArgumentError, match=r"task: name must be new, got 'passkey', which '.*passkey' defines"
    ):
        base.load(tmp_path)


def test_a_task_file_that_fails_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("1 / 0")
    with pytest.raises(InvalidArgumentError, match=r"include_path: must be a Python file that runs, got .*task\.py"):
        Options(model="tiny", include_path=str(tmp_path))
