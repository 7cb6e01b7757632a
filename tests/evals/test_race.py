"""`ropescale eval --until decided`: prompts in rounds to the arms that can still win; the same turns after a stop."""

import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from grids import run

from ropescale.errors import InvalidArgumentError
from ropescale.evals import grid, race
from ropescale.evals.bench import Bench
from ropescale.evals.decision import decide
from ropescale.evals.plan import Options
from ropescale.evals.results import Arm, read

LINEAR, SELF_EXTEND = Arm(method="linear", factor=2.0), Arm(method="self_extend", factor=2.0)


@pytest.fixture(scope="module")
def racing() -> Options:
    """On these prompts linear finds none and self_extend all, so that a few rounds tell them apart."""
    return Options(
        model="tiny",
        methods=("linear", "self_extend"),
        factors=(2.0,),
        tasks=("position", "passkey"),
        lengths=(256,),
        depths=(0.0, 1.0),
        samples=20,
        windows=3,
        until="decided",
    )


@pytest.fixture(scope="module")
def raced(racing, tmp_path_factory):
    return run(racing, tmp_path_factory.mktemp("race") / "raced")


def passkeys(results, arm):
    return len(results.cell(arm, "passkey", 256).samples)


def test_arms_that_cannot_win_are_asked_less_than_those_that_can(racing, raced):
    best = max(passkeys(raced, arm) for arm in racing.arms)
    assert passkeys(raced, LINEAR) < best <= 2 * racing.samples
    assert sum(sample["score"] for sample in raced.cell(LINEAR, "passkey", 256).samples) == 0
    decision = decide(raced)
    (linear,) = (one for one in decision.standings if one.arm == LINEAR)
    assert not linear.can_win
    assert linear.dropped_by is not None


def test_what_a_race_asked_is_what_a_fixed_grid_asks_first(racing, raced, tmp_path):
    fixed = run(replace(racing, until="finished"), tmp_path / "fixed")
    for arm in racing.arms:
        ours, theirs = (found.cell(arm, "passkey", 256).samples for found in (raced, fixed))
        for depth in racing.depths:
            these, those = (
                [{**one, "id": 0} for one in samples if one["depth"] == depth] for samples in (ours, theirs)
            )
            assert these == those[: len(these)]
        ours, theirs = (found.cell(arm, "position", 256).samples for found in (raced, fixed))
        assert [one["document"] for one in ours] == [one["document"] for one in theirs][: len(ours)]
    assert decide(fixed).arm == decide(raced).arm


def test_a_race_that_was_stopped_goes_on_to_the_same_results(racing, raced, tmp_path, monkeypatch):
    folder, cell, ran = tmp_path / "stopped", Bench.cell, []

    def stopping(bench, planned, first=0):
        ran.append(planned)
        if len(ran) == stop:
            raise KeyboardInterrupt
        return cell(bench, planned, first)

    monkeypatch.setattr(Bench, "cell", stopping)
    stop, stops = 4, 0
    while True:
        ran.clear()
        try:
            found = run(racing, folder)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    assert found.cells == raced.cells == read(folder).cells
    assert (folder / "results.jsonl").read_text() == (raced.folder / "results.jsonl").read_text()
    ran.clear()
    stop = 0
    assert run(racing, folder).cells == raced.cells
    assert not ran


def test_samples_that_are_there_already_change_no_turn(racing, raced, tmp_path):
    run(replace(racing, until="finished", methods=("linear",)), tmp_path / "more")
    found = run(racing, tmp_path / "more")
    assert passkeys(found, SELF_EXTEND) == passkeys(raced, SELF_EXTEND)
    assert passkeys(found, LINEAR) == 40


def test_the_windows_of_a_round_are_among_those_of_the_next(racing):
    """Of every perplexity task, also of those with several rows a window."""
    options = replace(racing, tasks=("position", "perplexity"), windows=6)
    bench = Bench(options)
    for task in options.asked:
        met = []
        for windows in (1, 2, 5, 6):
            bench.round = replace(bench.round, windows=windows)
            rows = [(row["document"], row["window"], row["text"]) for row in bench.rows_of_texts(task, 256)]
            assert rows[: len(met)] == met
            assert len({row[:2] for row in rows}) == windows
            met = rows


def test_a_time_that_does_not_hold_the_first_round_is_refused_and_nothing_is_written(racing, tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"budget: must be at least .* for the first round, got 1e-05"):
        run(replace(racing, budget=1e-5), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_no_round_begins_that_does_not_fit_into_the_time_and_more_time_goes_on(
    racing, raced, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(grid, "_minutes", lambda bench, missing: 1.0)
    short = run(replace(racing, budget=1.001), tmp_path / "out")
    assert {passkeys(short, arm) for arm in racing.arms} == {2 * race.FIRST}
    assert "the next round does not fit into 1.001 minutes" in capsys.readouterr().err
    assert run(replace(racing, budget=60), tmp_path / "out").cells == raced.cells


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"until": "tired"}, "until must be one of finished, decided"),
        ({"until": "finished", "budget": 5.0}, "budget must be minutes above 0 of an evaluation until it is decided"),
        ({"budget": 0.0}, "budget must be minutes above 0"),
        ({"budget": float("nan")}, "budget must be minutes above 0"),
        ({"methods": ("none",)}, "until must be 'finished' where only the model as it is runs"),
    ],
)
def test_what_cannot_be_decided_is_refused(racing, changed, said):
    with pytest.raises(InvalidArgumentError, match=said):
        replace(racing, **changed)


@pytest.mark.slow
def test_a_killed_race_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "ropescale", "eval", "tiny", "--methods", "linear,self_extend", "--factors", "2"]
    command += ["--tasks", "passkey", "--lengths", "256", "--until", "decided", "--samples", "8", "--output"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 1"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    before = read(tmp_path / "killed").cells
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
    killed, whole = (read(tmp_path / name).cells for name in ("killed", "whole"))
    assert killed == whole
    assert before != whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_race_decides_as_the_fixed_grid_does_with_half_of_its_prompts(seed, tmp_path):
    asked = Options(
        model="tiny",
        methods=("linear", "ntk", "by_parts", "yarn", "self_extend", "dynamic_yarn"),
        factors=(4.0,),
        tasks=("position", "passkey"),
        lengths=(128, 256, 512),
        samples=40,
        windows=60,
        seed=seed,
        until="decided",
    )
    raced = run(asked, tmp_path / "raced")
    fixed = run(replace(asked, until="finished"), tmp_path / "fixed")
    decisions = [decide(found) for found in (raced, fixed)]
    assert decisions[0].settled
    assert decisions[0].arm is not None
    assert decisions[0].arm == decisions[1].arm
    for task in asked.tasks:
        counts = [
            sum(len(cell.samples) for cell in found.cells.values() if cell.task == task) for found in (raced, fixed)
        ]
        assert counts[0] <= counts[1] / 2, (task, counts)
