"""One grid divided among processes: every cell once, the results of one process, whoever dies or is stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from grids import COMMAND, YARN, run
from holders import elsewhere, forked, killed
from lm_eval import evaluator

from ropescale.errors import InvalidArgumentError
from ropescale.evals import grid, results, workers
from ropescale.evals.bench import Bench
from ropescale.evals.leases import STALE, Leases
from ropescale.evals.results import UNPATCHED


@pytest.fixture
def asked(options):
    return replace(options, tasks=("position", "passkey", "cloze"), limit=4)


@pytest.fixture
def whole(asked, tmp_path):
    """What one process leaves."""
    run(asked, tmp_path / "whole")
    return (tmp_path / "whole" / "results.jsonl").read_bytes()


@pytest.fixture
def ran(monkeypatch):
    """The cells that are run from now on, by whichever process, as (task, arm, length)."""
    real, cells = Bench.cell, []

    def running(self, planned, first=0):
        cells.append(planned.key)
        return real(self, planned, first)

    monkeypatch.setattr(Bench, "cell", running)
    return cells


def stopped_where_it_waits(asked, folder, monkeypatch):
    """A second process, which does what it can and is stopped."""

    def stopped(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grid.time, "sleep", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(asked, folder)


def content(folder: Path) -> bytes:
    return (folder / "results.jsonl").read_bytes()


def test_a_second_process_takes_what_the_first_has_not_and_says_what_it_waits_for(
    asked, whole, ran, tmp_path, monkeypatch, capfd
):
    """The second one runs in the midst of the first one's second cell, until it has to wait, and is stopped there."""
    out, within, real = tmp_path / "out", [], Bench.cell

    def running(self, planned, first=0):
        if len(ran) == 1 and not within:
            within.append(planned.key)
            stopped_where_it_waits(asked, out, monkeypatch)
        return real(self, planned, first)

    monkeypatch.setattr(Bench, "cell", running)
    run(asked, out)
    assert len(ran) == len({*ran}) == 8
    assert ran[-1] == within[0]  # all that the first one then had to do
    assert content(out) == whole
    assert f"waiting for none passkey 128, which is run by process {os.getpid()} on " in capfd.readouterr().err
    assert [*(out / workers.FOLDER).iterdir()] == []
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 2


def test_a_cell_that_was_finished_between_a_look_and_the_lease_is_not_run_again(
    asked, whole, ran, tmp_path, monkeypatch
):
    out, real, within = tmp_path / "out", Leases.take, []

    def taking(self, name):
        if name != workers.WRITING and not within:
            within.append(name)
            run(asked, out)  # another process, which has all to itself
        return real(self, name)

    monkeypatch.setattr(Leases, "take", taking)
    run(asked, out)
    assert len(ran) == len({*ran}) == 8
    assert content(out) == whole


def digest(task: str, length: int | None) -> str:
    return workers._digest((task, "yarn", 2.0, length))


def test_the_cells_of_a_process_that_was_killed_are_run_again_and_those_of_another_machine_when_it_is_silent(
    asked, whole, ran, tmp_path, monkeypatch, capfd
):
    at = tmp_path / "out" / workers.FOLDER
    killed(forked(at, digest("passkey", 128)))
    afar = forked(at, digest("cloze", None))
    [member] = [path for path in at.glob("*.member") if json.loads(path.read_text())["process"] == afar]
    note = []
    real = Leases.__init__
    monkeypatch.setattr(Leases, "__init__", lambda self, at, note: real(self, at, note="same"))
    elsewhere(member, host="node7")
    killed(afar)  # which nobody of this machine looks for

    def silent(_):
        note.append(len(ran))
        os.utime(member, (0, time.time() - STALE - 1))

    monkeypatch.setattr(grid.time, "sleep", silent)
    run(asked, tmp_path / "out")
    assert note == [7]  # all but the one of node7 were run before it was waited for
    assert ran[-1] == ("cloze", "yarn", 2.0, None)
    assert len(ran) == len({*ran}) == 8
    assert content(tmp_path / "out") == whole
    assert f"waiting for yarn x2 cloze, which is run by process {afar} on node7; if" in capfd.readouterr().err


def test_a_line_that_a_kill_left_half_written_is_cut_before_the_next(asked, whole, tmp_path, monkeypatch):
    real = Bench.cell

    def running(self, planned, first=0):
        if planned.task.name == "cloze":
            with (tmp_path / "out" / "results.jsonl").open("a") as file:  # of another process, which died
                file.write('{"task": "pass')
        return real(self, planned, first)

    monkeypatch.setattr(Bench, "cell", running)
    run(asked, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_another_command_is_refused_while_others_run(asked, tmp_path):
    run(replace(asked, tasks=("cloze",)), tmp_path)
    with Leases(tmp_path / workers.FOLDER, note="another"), pytest.raises(InvalidArgumentError) as caught:
        run(asked, tmp_path)
    assert str(caught.value).startswith(
        f"output: runs that share a folder must be given the same command, got {str(tmp_path)!r}, where process "
        f"{os.getpid()} on "
    )
    assert str(caught.value).endswith(" runs another; wait for it, or choose another folder with output=DIR")
    run(asked, tmp_path)


def test_a_race_is_divided_round_by_round_to_the_same_verdict(options, tmp_path, monkeypatch, ran, capfd):
    asked = replace(options, tasks=("passkey",), lengths=(128, 256), samples=7, until="decided")
    alone = run(asked, tmp_path / "alone")
    rounds = capfd.readouterr().err.count("round ")
    assert rounds > 2
    before, real = len(ran), Bench.cell
    ran.clear()

    def running(self, planned, first=0):
        if len(ran) == 5:  # in the midst of the second round
            stopped_where_it_waits(asked, tmp_path / "out", monkeypatch)
        return real(self, planned, first)

    monkeypatch.setattr(Bench, "cell", running)
    assert run(asked, tmp_path / "out").cells == alone.cells
    assert results.read(tmp_path / "out").cells == alone.cells
    assert len(ran) == before


def test_the_lines_of_other_commands_stay_before_those_that_are_put_in_order(asked, tmp_path):
    first = run(replace(asked, tasks=("cloze",), limit=4), tmp_path)
    killed(forked(tmp_path / workers.FOLDER))
    with (tmp_path / "results.jsonl").open("a") as file:  # as an earlier round left it
        file.write(content(tmp_path).decode().splitlines()[2] + "\n")
    found = run(replace(asked, methods=("ntk",), tasks=("cloze",)), tmp_path)
    kinds = [(line["method"], line["task"]) for line in map(json.loads, content(tmp_path).splitlines())]
    assert kinds == [("yarn", "record"), ("yarn", "cloze")] + [
        (method, task) for task in ("record", "cloze") for method in ("none", "ntk")
    ]
    assert found.cell(UNPATCHED, "cloze") == first.cell(UNPATCHED, "cloze")
    assert found.cell(YARN, "cloze") == first.cell(YARN, "cloze")


def test_rows_that_several_processes_of_a_launch_had_are_numbered_as_one_has_them(asked, whole, tmp_path, monkeypatch):
    real = evaluator.evaluate

    def gathered(*given, **named):
        outcome = real(*given, **named)
        outcome["samples"] = {name: [*rows[::2], *rows[1::2]] for name, rows in outcome["samples"].items()}
        return outcome

    monkeypatch.setattr(evaluator, "evaluate", gathered)
    run(asked, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def started(folder: Path, *launch: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "ropescale.cli", *COMMAND, "--output", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_three_processes_of_which_one_is_killed_run_every_cell_once_to_the_bytes_of_one(tmp_path):
    assert started(tmp_path / "whole").wait() == 0
    rng = random.Random(0)
    for trial in range(4):
        out = tmp_path / str(trial)
        processes = [started(out) for _ in range(3)]
        at, asked, victim = out / workers.FOLDER, rng.randrange(3, 9), None
        while victim is None:  # whoever runs a cell when so many lines are written
            time.sleep(0.01)
            written = (out / "timings.jsonl").read_bytes().count(b"\n") if (out / "timings.jsonl").exists() else 0
            for lease in at.glob("*.lease") if written >= asked else ():
                try:
                    member = json.loads((at / f"{lease.read_text()}.member").read_text())
                except (OSError, ValueError):  # given back meanwhile
                    continue
                if not lease.name.startswith(workers.WRITING):
                    victim = member["process"]
        os.kill(victim, signal.SIGKILL)
        assert sorted(process.wait() for process in processes) == [-signal.SIGKILL, 0, 0]
        timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
        cells = [(one["task"], one["method"], one["length"]) for one in timings]
        assert len(cells) == len({*cells}) == len(content(tmp_path / "whole").splitlines())
        assert content(out) == content(tmp_path / "whole")
        assert (out / "report.html").exists()


@pytest.mark.slow
def test_a_launch_of_two_processes_and_one_alone_share_a_folder(tmp_path):
    assert started(tmp_path / "whole").wait() == 0
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    processes = [started(tmp_path / "out", *launch), started(tmp_path / "out")]
    assert [process.wait() for process in processes] == [0, 0]
    assert len((tmp_path / "out" / "timings.jsonl").read_text().splitlines()) == 14
    alone, shared = ([json.loads(line) for line in content(tmp_path / name).splitlines()] for name in ("whole", "out"))
    for one, other in zip(alone, shared, strict=True):
        for ours, theirs in zip(one.get("samples", []), other.get("samples", []), strict=True):
            assert {**ours, "nll": 0} == {**theirs, "nll": 0}
            assert theirs.get("nll", 0) == pytest.approx(ours.get("nll", 0), rel=1e-5)
