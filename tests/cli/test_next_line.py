"""What comes next after an evaluation, by what its results say."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from evaluations import Planted, plant

from ropescale import cli
from ropescale.cli.next_line import after_results
from ropescale.evals.results import read

UNPATCHED, YARN, LATE = ("none", 1.0), ("yarn", 2.0), ("self_extend", 2.0)
LOST, ALIKE = Planted(found=(50, 5), perplexity=(20, 60)), Planted(found=(300, 150))
FEW = {UNPATCHED: Planted(found=(5, 0)), YARN: Planted(found=(5, 3))}


def following(folder: Path) -> list[str]:
    return after_results(read(folder), ())


@pytest.mark.parametrize(
    ("arms", "more", "words"),
    [
        ({UNPATCHED: LOST, YARN: Planted(found=(50, 48))}, {}, ["rescale", "tiny", "out/tiny-yarn-x2", "--method"]),
        ({UNPATCHED: LOST, LATE: Planted(found=(50, 48))}, {}, ["explain", "tiny", "--methods", "self_extend"]),
        ({UNPATCHED: ALIKE, YARN: ALIKE}, {"prompts": 300}, ["chat", "tiny"]),
        (
            {UNPATCHED: Planted(found=(50, 48)), YARN: Planted(found=(50, 5), perplexity=(20, 30))},
            {},
            ["train", "pose", "--model", "tiny", "--method", "yarn", "--factor", "2"],
        ),
        ({UNPATCHED: LOST}, {}, ["eval", "tiny", "--methods", "yarn", "--factors", "2", "--quick"]),
    ],
    ids=["static", "late", "nothing", "worse", "alone"],
)
def test_what_was_told_is_done(tmp_path, arms, more, words):
    assert following(plant(tmp_path / "results", arms, **more))[: len(words)] == words


@pytest.mark.parametrize(
    ("arm", "knobs"),
    [(LATE, {"window": 64}), (LATE, {"temperature": "log_n:0.8"}), (YARN, {"log_n": True})],
    ids=["late", "late with a temperature", "static with a temperature"],
)
def test_what_acts_in_attention_is_explained_with_its_knobs(tmp_path, monkeypatch, capsys, arm, knobs):
    monkeypatch.chdir(tmp_path)
    folder = plant(tmp_path / "results", {UNPATCHED: LOST, arm: Planted(found=(50, 48))})
    told = json.loads((folder / "run.json").read_text())
    told["settings"]["knobs"] = {arm[0]: knobs}
    (folder / "run.json").write_text(json.dumps(told))
    words = following(folder)
    assert words[:4] == ["explain", "tiny", "--methods", arm[0]]
    assert json.loads(words[words.index("--knobs") + 1]) == {arm[0]: knobs}
    assert cli.main(words) == 0
    assert f"{arm[0]} with log_n" in capsys.readouterr().out or "window" in knobs


def commanded(folder: Path, command: str) -> Path:
    """The folder with this as the command that it was last made by."""
    told = json.loads((folder / "run.json").read_text())
    told["sessions"][-1]["command"] = command
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def test_where_nothing_is_told_the_same_is_asked_with_as_many_more_prompts_as_would(tmp_path, capsys):
    folder = plant(tmp_path / "results", FEW, prompts=5, tasks=("passkey",))
    commanded(folder, "ropescale eval tiny --methods yarn --samples 5 --output out/gone")
    need = 5 + int(
        next(one for one in report_of(folder, capsys).split(". ") if "At the rates" in one)
        .split("about ")[1]
        .split()[0]
    )
    assert following(folder) == ["eval", "tiny", "--methods", "yarn", "--samples", str(need), "--output", str(folder)]


def report_of(folder: Path, capsys) -> str:
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert shlex.split(printed.rpartition("next: ropescale ")[2])[0] == "eval"
    return (folder / "report.md").read_text()


def test_it_asks_for_windows_where_these_cost_less(tmp_path):
    arms = {UNPATCHED: Planted(found=(5, 0), perplexity=(20, 60)), YARN: Planted(found=(5, 1), perplexity=(20, 21))}
    folder = plant(tmp_path / "results", arms, prompts=5, windows=2)
    found = following(commanded(folder, "ropescale eval tiny --methods yarn --windows 2"))
    assert found[:5] == ["eval", "tiny", "--methods", "yarn", "--windows"]


@pytest.mark.parametrize("command", ["ropescale.evaluate('tiny', ...)", "a script of mine"])
def test_what_was_no_command_is_not_given_again(tmp_path, command):
    folder = commanded(plant(tmp_path / "results", FEW, prompts=5, tasks=("passkey",)), command)
    assert following(folder)[:2] == ["train", "pose"]
