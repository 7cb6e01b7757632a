"""Tasks of a user's own, defined in a folder outside the package: like those that ship, wherever tasks are read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropescale.cli import main
from ropescale.errors import InvalidArgumentError
from ropescale.evals import grid, plan
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
