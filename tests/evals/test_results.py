"""The folder of results: cells that survive a kill, settings that must agree, files that are never half written."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError
from ropescale.evals import results
from ropescale.evals.results import UNPATCHED, Arm, Cell, Session, Settings

SETTINGS = Settings(
    model="m",
    weights="0" * 16,
    dtype="float32",
    original_length=128,
    backend="transformers",
    tasks={"passkey": {"version": 1, "samples": 2}},
    lengths=(128, 256),
    seed=0,
    texts="1" * 16,
    versions={"torch": "1"},
)
SESSION = Session.of({"command": "ropescale eval m"})
LINE = {"task": "passkey", "method": "yarn", "factor": 2.0, "length": 128, "scores": {"score": 1.0}, "samples": []}
CELL = Cell.of(LINE)


def begun(folder: Path) -> results.Results:
    return results.start(folder, SETTINGS, SESSION)


def test_a_cell_is_one_whole_line_and_its_time_stands_apart(tmp_path):
    found = begun(tmp_path)
    found.append(CELL, seconds=1.23456, tokens=512)
    assert (tmp_path / "results.jsonl").read_text() == json.dumps(LINE) + "\n"
    axes = {"task": "passkey", "method": "yarn", "factor": 2.0, "length": 128}
    assert json.loads((tmp_path / "timings.jsonl").read_text()) == {**axes, "seconds": 1.235, "tokens": 512}
    again = results.read(tmp_path)
    assert again.cells == found.cells
    assert again.timings == found.timings
    assert again.settings == SETTINGS
    assert again.cell(Arm(method="yarn", factor=2.0), "passkey", 128) == CELL
    assert again.cell(Arm(method="yarn", factor=2.0), "passkey", 256) is None


def test_arms_come_unpatched_first_then_by_factor_in_the_order_in_which_they_ran(tmp_path):
    found = begun(tmp_path)
    for method, factor in (("yarn", 4.0), ("ntk", 2.0), ("none", 1.0), ("linear", 2.0)):
        found.append(replace(CELL, arm=Arm(method=method, factor=factor)), seconds=0, tokens=0)
    assert [arm.label for arm in found.arms()] == ["none", "ntk x2", "linear x2", "yarn x4"]
    assert found.arms()[0] == UNPATCHED


def test_a_line_that_a_kill_tore_is_dropped_with_a_warning_and_cut_before_the_next_one(tmp_path):
    begun(tmp_path).append(CELL, seconds=0, tokens=0)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes() + b'{"task": "pass')
    with pytest.warns(UserWarning, match="the last line is cut off and is dropped; its cell counts as not run$"):
        found = begun(tmp_path)
    found.append(replace(CELL, length=256), seconds=0, tokens=0)
    assert [json.loads(line)["length"] for line in path.read_text().splitlines()] == [128, 256]


def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path):
    begun(tmp_path).append(CELL, seconds=0, tokens=0)
    path = tmp_path / "results.jsonl"
    path.write_text("{broken\n" + path.read_text())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InvalidArgumentError) as caught:
        begun(tmp_path)
    assert str(caught.value) == (
        f"results: line 1 of {str(path)!r} must be a cell as an evaluation wrote it, got '{{broken'; "
        f"remove the line and run again"
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("line", ['"text"', "{}", '{"task": "passkey", "method": "yarn", "factor": "x"}'])
def test_a_line_that_is_no_cell_is_named(tmp_path, line):
    begun(tmp_path)
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidArgumentError, match=r"line 1 of .* must be a cell as an evaluation wrote it, got "):
        results.read(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"settings": {}}', '{"settings": {"lengths": 3}, "sessions": []}', "[]"]
)
def test_a_damaged_run_json_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(
        RopescaleError, match=r"run.json'?:? must (be as an evaluation wrote it|.* JSON).*, got .*; choose"
    ):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("lengths", []),
        ("lengths", ["a"]),
        ("tasks", []),
        ("original_length", 0),
        ("model", 5),
        ("versions", {"a": 1}),
    ],
)
def test_settings_of_another_kind_are_named(tmp_path, name, value):
    begun(tmp_path)
    stored = json.loads((tmp_path / "run.json").read_text())
    stored["settings"][name] = value
    (tmp_path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(
        InvalidArgumentError, match=rf"results: {name} in .*run.json' must be as an evaluation wrote it"
    ):
        results.read(tmp_path)


def test_a_timing_that_is_none_is_named(tmp_path):
    begun(tmp_path)
    (tmp_path / "timings.jsonl").write_text("{}\n")
    with pytest.raises(InvalidArgumentError, match=r"results: line 1 of '.*timings.jsonl' must be a cell"):
        results.read(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError) as caught:
        results.read(tmp_path)
    assert str(caught.value) == (
        f"results: a folder must hold the run.json of an evaluation, got {str(tmp_path)!r}; "
        f"name the output folder of an evaluation"
    )


def test_results_without_their_run_json_are_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(InvalidArgumentError) as caught:
        begun(tmp_path)
    assert str(caught.value) == (
        f"output: a folder with results.jsonl must hold its run.json too, got {str(tmp_path)!r}; "
        f"choose another folder with output=DIR"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "the same seed (0), got 1"),
        ({"weights": "2" * 16}, f"the same weights ({'0' * 16!r}), got {'2' * 16!r}"),
        ({"texts": "2" * 16}, f"the same texts ({'1' * 16!r}), got {'2' * 16!r}"),
        ({"original_length": 64}, "the same original_length (128), got 64"),
        (
            {"tasks": {"passkey": {"version": 2, "samples": 2}}},
            "the same task passkey ({'version': 1, 'samples': 2}), got {'version': 2, 'samples': 2}",
        ),
    ],
)
def test_other_settings_are_refused_and_the_folder_is_left_as_it_is(tmp_path, change, text):
    begun(tmp_path).append(CELL, seconds=0, tokens=0)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InvalidArgumentError) as caught:
        results.start(tmp_path, replace(SETTINGS, **change), SESSION)
    assert str(caught.value) == (
        f"output: results in {str(tmp_path)!r} must be of {text}; choose another folder with output=DIR"
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_finished_folder_takes_more_tasks_and_lengths(tmp_path):
    begun(tmp_path).append(CELL, seconds=0, tokens=0)
    more = replace(SETTINGS, tasks={"cloze": {"version": 1}}, lengths=(512,))
    found = results.start(tmp_path, more, SESSION)
    assert found.settings.tasks == {"passkey": {"version": 1, "samples": 2}, "cloze": {"version": 1}}
    assert found.settings.lengths == (128, 256, 512)
    assert len(found.cells) == 1
    assert len(results.read(tmp_path).sessions) == 2


def test_what_earlier_sessions_wrote_of_themselves_stays_byte_for_byte(tmp_path):
    begun(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    run["sessions"] = [{"python": "3.9", "cores": None, "command": 7, "of a later version": [1]}, {}]
    (tmp_path / "run.json").write_text(json.dumps(run))
    found = begun(tmp_path)
    run["sessions"].append({"command": "ropescale eval m"})
    assert (tmp_path / "run.json").read_text() == json.dumps(run, indent=2) + "\n"
    assert [session.command for session in found.sessions] == [None, None, "ropescale eval m"]
    assert found.sessions[0].python == "3.9"


def test_what_cannot_be_written_whole_is_taken_back(tmp_path, monkeypatch):
    found = begun(tmp_path)
    found.append(CELL, seconds=0, tokens=0)
    before = (tmp_path / "results.jsonl").read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: real(descriptor, line[:10]))  # a full disk takes a part
    with pytest.raises(CheckpointError) as caught:
        found.append(replace(CELL, length=256), seconds=0, tokens=0)
    assert str(caught.value) == (
        f"results: must be a place with room that can be written, got {str(tmp_path / 'results.jsonl')!r} ([Errno 28] "
        f"No space left on device); make room there and give the same command again, finished cells are kept"
    )
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_a_full_disk_is_worded_and_leaves_no_half_file(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("before")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(CheckpointError, match=r"room that can be written, .*\(\[Errno 28\] No space left\); make"):
        results.write_atomically(tmp_path / "report.html", "x" * 100_000)
    monkeypatch.undo()
    assert (tmp_path / "report.html").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_writing_atomically_replaces_the_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    results.write_atomically(path, "after")
    assert path.read_text() == "after"
    assert sorted(tmp_path.iterdir()) == [path]
