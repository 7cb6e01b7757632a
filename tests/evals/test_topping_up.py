"""Samples and windows added to those that there are, and what bounds or leaves out rows."""

import io
import json
from dataclasses import replace

import pytest
from grids import YARN, run
from rich.console import Console

from ropescale.errors import InvalidArgumentError
from ropescale.evals import report
from ropescale.evals.bench import Bench
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.terminal import print_summary
from ropescale.evals.results import UNPATCHED, Arm, read


def test_more_samples_are_added_to_those_that_there_are(options, tmp_path, monkeypatch):
    few = replace(options, tasks=("passkey",), lengths=(128,), samples=2)
    run(few, tmp_path / "out")
    asked = []
    generate = RopescaleLM.generate_until
    monkeypatch.setattr(
        RopescaleLM,
        "generate_until",
        lambda lm, requests, *rest: asked.append(len(requests)) or generate(lm, requests, *rest),
    )
    more = run(replace(few, samples=3), tmp_path / "out")
    assert asked == [2, 2]  # one more of each of two depths, on two arms
    at_once = run(replace(few, samples=3), tmp_path / "at once")
    for arm in (UNPATCHED, YARN):
        assert more.cell(arm, "passkey", 128) == at_once.cell(arm, "passkey", 128)
    assert read(tmp_path / "out").cells == at_once.cells
    with pytest.raises(InvalidArgumentError, match="can be given more samples of passkey, not fewer than 3, got 2"):
        run(few, tmp_path / "out")


WINDOWED = ("position", "perplexity")


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_more_windows_are_added_to_those_that_there_are_and_fewer_are_the_first_ones(options, tmp_path, monkeypatch):
    few = replace(options, tasks=WINDOWED, lengths=(128, 256), windows=2)
    run(few, tmp_path / "out")
    read_rows = []
    score = RopescaleLM.loglikelihood
    monkeypatch.setattr(
        RopescaleLM, "loglikelihood", lambda lm, asked, *rest: read_rows.append(len(asked)) or score(lm, asked, *rest)
    )
    more = run(replace(few, windows=5), tmp_path / "out")
    added, read_rows[:] = sum(read_rows), []
    at_once = run(replace(few, windows=5), tmp_path / "at once")
    assert 0 < added < sum(read_rows)
    assert more.settings.tasks == at_once.settings.tasks
    for (task, *_), cell in at_once.cells.items():
        same_cells(more.cells[cell.key], cell)
        if task == "position":
            assert len(cell.samples) == 5
    assert read(tmp_path / "out").cells == more.cells
    read_rows.clear()
    fewer = run(replace(few, windows=2, methods=("yarn", "ntk")), tmp_path / "out")
    assert {method for _, method, *_ in fewer.cells} == {"none", "yarn", "ntk"}
    alone = run(replace(few, methods=("yarn", "ntk")), tmp_path / "fewer at once")
    for cell in alone.cells.values():
        same_cells(fewer.cells[cell.key], cell)
        same_cells(read(tmp_path / "out").cells[cell.key], cell)
    assert read_findings(read(tmp_path / "out")).unfinished == ()
    read_rows.clear()
    again = run(replace(few, windows=5, methods=("yarn",)), tmp_path / "out")
    assert not read_rows  # all five are there still
    assert len(again.cell(YARN, "position", 256).samples) == 5


def same_cells(one, other):
    """The same rows in the same order; figures alike up to the rounding of batches of other sizes."""
    assert replace(one, samples=()) == replace(other, samples=())
    for ours, theirs in zip(one.samples, other.samples, strict=True):
        assert {**ours, "nll": None} == {**theirs, "nll": None}
        assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-5)


def test_an_arm_that_is_being_given_more_samples_is_compared_on_those_that_it_has(options, tmp_path, monkeypatch):
    few = replace(options, tasks=("passkey",), lengths=(128,), samples=1)
    run(few, tmp_path / "out")
    real = Bench.cell

    def stopping(self, planned, first=0):
        if planned.arm == YARN:
            raise KeyboardInterrupt
        return real(self, planned, first)

    monkeypatch.setattr(Bench, "cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(replace(few, samples=2), tmp_path / "out")
    findings = read_findings(read(tmp_path / "out"))
    assert findings.unfinished == ()
    unpatched, yarn = (findings.row(arm).retrieval_inside for arm in (UNPATCHED, YARN))
    assert (unpatched.asked, yarn.asked) == (4, 2)
    report.write(tmp_path / "out")


def test_limit_bounds_cloze_and_is_refused_where_it_would_bound_nothing(options, tmp_path):
    found = run(replace(options, tasks=("cloze",), limit=4), tmp_path / "out")
    assert len(found.cell(YARN, "cloze").samples) == 4
    with pytest.raises(
        InvalidArgumentError, match="limit is about cloze and tasks of the harness, got 4 with passkey"
    ):
        replace(options, tasks=("passkey",), limit=4)


def test_layers_reach_the_patch_and_are_stated(options, tmp_path):
    found = run(replace(options, tasks=("cloze",), limit=2, layers="all", original_length=64), tmp_path / "out")
    assert found.cell(YARN, "record").record["layers"] == "all"
    report.write(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert (told["existing"], told["layers"], told["original_length"]) == ("error", "all", 64)
    assert "original length 64 tokens, existing error, layers all" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(InvalidArgumentError, match="must be of the same layers"):
        run(replace(options, tasks=("cloze",), limit=2, original_length=64), tmp_path / "out")


def test_knobs_name_no_argument_of_patch(options):
    for name in ("factor", "original_length", "existing"):
        with pytest.raises(InvalidArgumentError, match=f"yarn: knobs must be the method's own, got '{name}'"):
            replace(options, knobs={"yarn": {name: 3}})


LONG = """
task: long
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {max_gen_toks: 5, until: ["\\n"]}
metric_list: [{metric: exact_match}]
"""


def test_a_prompt_that_is_longer_than_an_arm_reads_is_left_out_of_that_arm_alone(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"q": "the town " * times, "a": "x"} for times in (5, 110, 400, 5)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "long.yaml").write_text(LONG.replace("DATA", str(tmp_path / "rows.json")))
    asked = replace(
        options,
        factors=(2.0, 4.0),
        lengths=(128,),
        tasks=("passkey", "long"),
        samples=1,
        include_path=str(tmp_path / "tasks"),
    )
    found = run(asked, tmp_path / "out")
    x2, x4 = YARN, Arm(method="yarn", factor=4.0)
    left_out = {
        arm: [one["id"] for one in found.cell(arm, "long").samples if one.get("left_out")]
        for arm in (UNPATCHED, x2, x4)
    }
    assert left_out == {UNPATCHED: [2], x2: [1, 2], x4: [2]}
    assert all(found.cell(arm, "passkey", 128) for arm in (UNPATCHED, x2, x4))
    report.write(tmp_path / "out")
    assert (
        "2 of 4 prompts of long are longer than the 256 tokens that yarn x2 reads, and are left out of its score."
        in ((tmp_path / "out" / "report.md").read_text())
    )


def test_a_run_of_short_questions_alone_says_its_score(options, tmp_path):
    found = run(replace(options, tasks=("cloze",), limit=4), tmp_path / "out")
    score = f"{found.cell(UNPATCHED, 'cloze').scores['acc']:.1%}"
    report.write(tmp_path / "out")
    headline = (tmp_path / "out" / "report.md").read_text().splitlines()[0]
    assert headline.startswith(f"# Unpatched, the model scores {score} in cloze, ")
    printed = io.StringIO()
    print_summary(found, Console(file=printed, width=80))
    assert f"unpatched: cloze {score}" in printed.getvalue()
