"""`ropescale eval`: cells, resuming after a kill, what is refused, and that every arm gets the same rows."""

import copy
import io
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
import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ropescale
from ropescale.checkpoints import resolve
from ropescale.destinations import sole_writer
from ropescale.errors import AlreadyScaledError, InvalidArgumentError, RopescaleError
from ropescale.evals import grid, report
from ropescale.evals.bench import Bench
from ropescale.evals.chat import chat_frame
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.plan import Options
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.terminal import print_summary
from ropescale.evals.report.wording import command_text
from ropescale.evals.results import UNPATCHED, Arm, read
from ropescale.evals.tasks import base

YARN = Arm(method="yarn", factor=2.0)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("tiny"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """A small Llama with random weights and the embedded tokenizer, on disk."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def options(checkpoint):
    return Options(model=str(checkpoint), methods=("yarn",), depths=(0.0, 1.0), windows=2, samples=2, texts="sample")


def run(options, folder):
    return grid.run(options, folder, "ropescale eval")


def test_every_cell_of_the_plan_is_run_and_says_what_it_is(options, tmp_path):
    found = run(options, tmp_path)
    keys = {(task, method, length) for task, method, _, length in found.cells}
    assert keys == {
        *(("record", method, None) for method in ("none", "yarn")),
        *(("position", method, 256) for method in ("none", "yarn")),
        *(("cloze", method, None) for method in ("none", "yarn")),
        *((task, method, n) for task in ("perplexity", "passkey") for method in ("none", "yarn") for n in (128, 256)),
    }
    strided = found.cell(YARN, "perplexity", 128)
    assert (strided.stated["window"], strided.stated["stride"]) == (128, 64)
    assert sum(sample["tokens"] for sample in strided.samples) >= 2 * (256 - 64)
    position = found.cell(YARN, "position", 256).samples
    assert [len(sample["nll"]) for sample in position] == [16, 16]
    assert position[0]["edges"][:3] == [1, 16, 32]
    assert all(sum(sample["tokens"]) == 255 for sample in position)
    passkey = found.cell(YARN, "passkey", 256)
    assert [sample["depth"] for sample in passkey.samples] == [0.0, 0.0, 1.0, 1.0]
    assert all(len(sample["target"][0]) == 5 and isinstance(sample["reply"], str) for sample in passkey.samples)
    assert len(found.cell(YARN, "cloze").samples) == 60
    assert found.cell(YARN, "record").record["knobs"]["factor"] == 2.0
    assert found.cell(UNPATCHED, "record").record is None
    assert len(found.timings) == len(found.cells)


def test_every_arm_gets_the_same_rows(options, tmp_path):
    found = run(options, tmp_path)
    for task, length in (("passkey", 128), ("passkey", 256), ("position", 256), ("perplexity", 128)):
        ours, theirs = (found.cell(arm, task, length).samples for arm in (UNPATCHED, YARN))
        for one, other in zip(ours, theirs, strict=True):
            same = ("target", "depth", "document", "window", "tokens", "edges")
            assert {k: one.get(k) for k in same} == {k: other.get(k) for k in same}


def test_perplexity_by_position_is_what_transformers_own_loss_says(options, tmp_path, tokenizer, checkpoint):
    found = run(replace(options, tasks=("position",), windows=1), tmp_path)
    from ropescale.evals.tasks.windows import windows
    from ropescale.evals.texts import sample

    cutter, _, first = windows(sample(), tokenizer, length=256, limit=1)[0]
    ids = torch.tensor([cutter.ids[first : first + 256]])
    model = ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=2)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    nats = found.cell(YARN, "position", 256).samples[0]["nll"]
    assert sum(nats) / 255 == pytest.approx(loss, rel=1e-5)


def test_a_second_run_changes_nothing_and_more_methods_run_alone(options, tmp_path):
    options = replace(options, tasks=("passkey",))
    run(options, tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    run(options, tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == before
    run(replace(options, methods=("yarn", "ntk")), tmp_path)
    after = (tmp_path / "results.jsonl").read_bytes()
    assert after.startswith(before)
    assert {json.loads(line)["method"] for line in after[len(before) :].splitlines()} == {"ntk"}


def test_a_run_that_was_stopped_goes_on_with_the_next_cell_to_the_same_results(options, tmp_path, monkeypatch):
    whole = run(options, tmp_path / "whole")
    real, done = Bench.cell, []

    def stopping(self, planned, first=0):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(planned)
        return real(self, planned, first)

    monkeypatch.setattr(Bench, "cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(options, tmp_path / "stopped")
    monkeypatch.undo()
    assert len((tmp_path / "stopped" / "results.jsonl").read_text().splitlines()) == 2 + 4  # two records
    assert run(options, tmp_path / "stopped").cells == whole.cells
    content = [(tmp_path / name / "results.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert content[0] == content[1]


AMOUNTS = ["--factors", "2", "--depths", "0,1", "--samples", "2", "--windows", "2"]
COMMAND = ["eval", "tiny", "--methods", "yarn", *AMOUNTS]


def killed_and_resumed(folder: Path, after: float) -> bool:
    """One run that is killed after some seconds; whether the kill came before the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ropescale.cli", *COMMAND, "--output", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def finished(folder: Path) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "ropescale.cli", *COMMAND, "--output", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return (folder / "results.jsonl").read_bytes()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_and_repeat_nothing(tmp_path):
    began = time.perf_counter()
    whole = finished(tmp_path / "whole")
    length = time.perf_counter() - began
    rng = random.Random(0)
    killed = 0
    for trial in range(20):
        folder = tmp_path / str(trial)
        killed += killed_and_resumed(folder, rng.uniform(0.2, 0.95) * length)
        assert finished(folder) == whole
        assert not list(folder.glob("*.part"))
    assert killed >= 15


def test_a_method_the_model_refuses_ends_the_run_before_anything_is_written(options, tmp_path):
    with pytest.raises(InvalidArgumentError):
        run(replace(options, methods=("yarn", "abf")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_length_that_a_task_cannot_have_ends_the_run_before_anything_is_written(options, tmp_path):
    with pytest.raises(InvalidArgumentError, match="passkey"):
        run(replace(options, tasks=("passkey",), lengths=(32,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_ends_the_run_before_anything_is_written(options, tmp_path):
    with pytest.raises(InvalidArgumentError, match="got 'paskey'; did you mean 'passkey'"):
        run(replace(options, tasks=("paskey",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_saved_patched_runs_as_it_is_and_not_against_methods(options, tmp_path, checkpoint, tokenizer):
    saved = tmp_path / "saved"
    ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=2).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    with pytest.raises(InvalidArgumentError) as caught:
        run(replace(options, model=str(saved)), tmp_path / "out")
    assert str(caught.value) == (
        f"eval: a model that was saved patched is evaluated as it is, got {str(saved)!r} with methods yarn; "
        f"give methods=['none'], or the checkpoint that it was made from"
    )
    live = run(options, tmp_path / "live")
    alone = run(replace(options, model=str(saved), methods=("none",), lengths=(128, 256)), tmp_path / "alone")
    assert alone.settings.original_length == 128
    assert alone.cell(UNPATCHED, "record").record["method"] == "yarn"
    for task, length in (("passkey", 256), ("perplexity", 256)):
        assert alone.cell(UNPATCHED, task, length).samples == live.cell(YARN, task, length).samples


def test_a_model_that_returns_nan_is_named_and_finished_cells_are_kept(options, tmp_path, checkpoint, tokenizer):
    broken = LlamaForCausalLM.from_pretrained(checkpoint)  # where it was damaged, no proof of a patch looks
    with torch.no_grad():
        broken.model.embed_tokens.weight[40:400] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(RopescaleError, match=r"nan|NaN"):
        run(replace(options, model=str(tmp_path / "broken"), tasks=("position",)), tmp_path / "out")
    kept = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {cell["task"] for cell in kept} == {"record"}


@pytest.fixture
def extended(checkpoint, tokenizer, tmp_path):
    """The same checkpoint as somebody would publish it: scaled natively by yarn to four times its length."""
    model = ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=4)
    model.save_pretrained(tmp_path / "extended")
    tokenizer.save_pretrained(tmp_path / "extended")
    config = json.loads((tmp_path / "extended" / "config.json").read_text())
    del config["ropescale"]
    (tmp_path / "extended" / "config.json").write_text(json.dumps(config))
    return tmp_path / "extended"


def test_a_checkpoint_that_is_scaled_natively_is_evaluated_as_it_is(options, extended, tmp_path):
    """Its figures are those of the method on the original, and its length is the one that it was extended to."""
    few = replace(options, tasks=("position",), lengths=(512,))
    method = run(replace(few, factors=(4.0,)), tmp_path / "of the original")
    plain = run(replace(few, model=str(extended), methods=("none",)), tmp_path / "as it is")
    assert plain.settings.original_length == 512
    theirs = method.cell(Arm(method="yarn", factor=4.0), "position", 512).samples
    ours = plain.cell(UNPATCHED, "position", 512).samples
    assert [sum(one["nll"]) for one in ours] == pytest.approx([sum(one["nll"]) for one in theirs], rel=1e-6)


def test_methods_on_a_checkpoint_that_is_scaled_natively_say_what_they_start_from(options, extended, tmp_path):
    few = replace(options, tasks=("position",), factors=(4.0,), lengths=(512,))
    with pytest.raises(AlreadyScaledError, match="replace"):
        run(replace(few, model=str(extended)), tmp_path / "neither")
    original = run(few, tmp_path / "original")
    replaced = replace(few, model=str(extended), existing="replace")
    found = run(replaced, tmp_path / "replaced")
    assert found.settings.original_length == 128
    arm = Arm(method="yarn", factor=4.0)
    assert found.cell(arm, "position", 512).samples == original.cell(arm, "position", 512).samples
    composed = run(replace(few, model=str(extended), existing="compose", lengths=(512,)), tmp_path / "composed")
    assert composed.settings.original_length == 512
    with pytest.raises(InvalidArgumentError, match="existing"):
        run(replace(replaced, existing="compose", original_length=128), tmp_path / "replaced")
    with pytest.raises(InvalidArgumentError, match="existing must be one of error, compose, replace"):
        replace(few, existing="keep")


@pytest.mark.parametrize(
    ("start", "scaled"),
    [
        ({"original_length": 64}, False),
        ({"existing": "replace", "original_length": 64}, True),
        ({"existing": "compose"}, True),
    ],
)
def test_the_call_in_the_report_makes_the_model_that_was_evaluated(
    options, checkpoint, extended, tmp_path, start, scaled
):
    source = str(extended if scaled else checkpoint)
    # llama3, since its frequencies differ between these lengths also with so few pairs
    asked = replace(options, model=source, methods=("llama3",), tasks=("position",), factors=(2.0,), **start)
    run(asked, tmp_path / "out")
    findings = read_findings(read(tmp_path / "out"))
    call = command_text(Arm(method="llama3", factor=2.0), findings)
    printed = eval(call, {"ropescale": ropescale, "model": LlamaForCausalLM.from_pretrained(source)})
    meant = ropescale.patch(LlamaForCausalLM.from_pretrained(source), "llama3", factor=2.0, **start)
    assert printed.config.max_position_embeddings == meant.config.max_position_embeddings
    tokens = torch.randint(0, printed.config.vocab_size, (1, 120), generator=torch.Generator().manual_seed(0))
    assert torch.equal(printed(tokens).logits, meant(tokens).logits)


def test_methods_take_knobs_and_a_folder_keeps_to_them(options, tmp_path):
    asked = replace(options, methods=("abf",), knobs={"abf": {"theta": 40_000}}, tasks=("passkey",))
    found = run(asked, tmp_path / "out")
    assert found.cell(Arm(method="abf", factor=2.0), "record").record["knobs"]["theta"] == 40_000
    with pytest.raises(InvalidArgumentError, match="must be of the same knobs"):
        run(replace(asked, knobs={"abf": {"theta": 50_000}}), tmp_path / "out")


def test_two_runs_cannot_write_to_one_folder(options, tmp_path):
    with sole_writer(tmp_path), pytest.raises(InvalidArgumentError) as caught:
        run(options, tmp_path)
    assert str(caught.value) == (
        f"output: only one run at a time can write to a folder, got {str(tmp_path)!r}, where another one is "
        f"writing; wait for it, or choose another folder with output=DIR"
    )


TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: ["red", "blue"]
doc_to_target: answer
"""


def test_a_task_of_the_users_own_runs_beside_ours(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Colour {number}:", "answer": number % 2} for number in range(5)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.replace("DATA", str(tmp_path / "rows.json")))
    asked = replace(options, tasks=("colours",), limit=3, include_path=str(tmp_path / "tasks"))
    found = run(asked, tmp_path / "out")
    for arm in (UNPATCHED, YARN):
        cell = found.cell(arm, "colours")
        assert cell.scores.keys() == {"acc", "acc_norm"}
        assert len(cell.samples) == 3
        assert cell.scores["acc"] == pytest.approx(sum(sample["score"] for sample in cell.samples) / 3)


def test_a_checkpoint_that_was_saved_patched_is_named_and_tested_to_twice_what_it_was_extended_to(
    options, tmp_path, checkpoint, tokenizer
):
    saved = tmp_path / "saved"
    ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=2).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    few = replace(options, model=str(saved), methods=("none",), tasks=("perplexity", "passkey"), samples=1, windows=1)
    found = run(few, tmp_path / "out")
    assert found.settings.lengths == (128, 256, 512)
    report.write(tmp_path / "out")
    for name in ("report.html", "report.md", "model-card.md", "report.json"):
        said = (tmp_path / "out" / name).read_text()
        assert "as saved: yarn x2" in said
        assert "npatched" not in said.replace('"unpatched": {', "")
    verdict = (tmp_path / "out" / "report.md").read_text().splitlines()[0]
    assert verdict.startswith("# As saved (yarn x2), the model ")
    assert "name: accuracy" in (tmp_path / "out" / "model-card.md").read_text()
    assert json.loads((tmp_path / "out" / "evaluate.json").read_text())["base"] == "as saved: yarn x2"


def test_a_checkpoint_that_was_published_scaled_is_named_so(options, extended, tmp_path):
    few = replace(options, model=str(extended), methods=("none",), tasks=("cloze",), limit=2)
    assert run(few, tmp_path / "out").settings.base == "as published: yarn x4"


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


def test_an_arm_that_is_being_given_more_samples_is_left_out_of_the_report(options, tmp_path, monkeypatch):
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
    assert findings.unfinished == (YARN,)


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


CHAT = (
    "{% for m in messages %}{{m['role']}}: {{m['content']}}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# thinks whatever it is told, and takes no reply that was begun
THINKER = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('the user has the last word') }}"
    "{% endif %}{{m['role']}}: {{m['content']}}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>{% endif %}{# </think> #}"
)


def chatty(checkpoint, folder, tokenizer, template):
    LlamaForCausalLM.from_pretrained(checkpoint).save_pretrained(folder)
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    made.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("template", "length"), [(CHAT, 200), (THINKER, 800)])
def test_in_a_chat_template_a_prompt_and_its_reply_have_the_length_asked_for(
    options, tmp_path, checkpoint, tokenizer, monkeypatch, template, length
):
    model = chatty(checkpoint, tmp_path / "chatty", tokenizer, template)
    asked = []
    generate = RopescaleLM.generate_until

    def seen(lm, requests, *rest):
        asked.extend((request.args[0], lm.tokens_of(request)) for request in requests)
        return generate(lm, requests, *rest)

    monkeypatch.setattr(RopescaleLM, "generate_until", seen)
    few = replace(options, model=model, tasks=("passkey",), factors=(8.0,), lengths=(length,), samples=1, chat=True)
    found = run(few, tmp_path / "out")
    assert len(found.cell(Arm(method="yarn", factor=8.0), "passkey", length).samples) == 2
    assert {tokens for _, tokens in asked} == {length}
    assert all(text.startswith("user: There is an important info") for text, _ in asked)
    ends = {text.rpartition("key?")[2].strip() for text, _ in asked}
    assert ends == ({"assistant: The pass key is"} if template == CHAT else {"The pass key is\nassistant: <think>"})


def test_what_stands_before_the_end_of_a_thought_is_no_answer(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.chat_template = THINKER
    frame = chat_frame(made)
    lm = RopescaleLM(ropescale.load("tiny"), made, think_end_token=frame.end_of_thought)
    reply = tokenizer.encode("12345?</think> 54321", add_special_tokens=False)
    assert (frame.begins, frame.end_of_thought, lm._cleaned(reply, ["\n"])) == (False, "</think>", "54321")


def test_chat_without_a_template_is_one_sentence(options, tmp_path, tokenizer):
    assert tokenizer.chat_template is None
    with pytest.raises(InvalidArgumentError, match="chat: the tokenizer must have a chat template, got none"):
        run(replace(options, chat=True, tasks=("cloze",)), tmp_path / "out")


@pytest.mark.parametrize("file", ["timings.jsonl", "run.json"])
def test_a_folder_that_was_damaged_is_one_sentence(options, tmp_path, file):
    run(replace(options, tasks=("cloze",), limit=2), tmp_path / "out")
    path = tmp_path / "out" / file
    if file == "timings.jsonl":
        path.write_text(path.read_text() + "{}\n")
    else:
        told = json.loads(path.read_text())
        told["settings"]["lengths"] = []
        path.write_text(json.dumps(told))
    with pytest.raises(InvalidArgumentError, match="as an evaluation wrote it"):
        report.write(tmp_path / "out")


@pytest.mark.slow
def test_the_stock_harness_answers_smollm2_s_passkeys_as_this_evaluation_does(tmp_path):
    """On a checkpoint that was saved patched, with no code of ours but the task."""
    saved = tmp_path / "saved"
    ropescale.patch(ropescale.load("smollm2", dtype=torch.float32), "yarn", factor=2).save_pretrained(saved)
    AutoTokenizer.from_pretrained(resolve("smollm2")).save_pretrained(saved)
    options = Options(
        model="smollm2", methods=("yarn",), tasks=("passkey",), lengths=(1024,), depths=(0.0, 0.5, 1.0), samples=2
    )
    cell = run(options, tmp_path / "ours").cell(YARN, "passkey", 1024)
    metadata = {"lengths": [1024], "depths": [0.0, 0.5, 1.0], "samples": 2}
    command = [Path(sys.executable).with_name("lm_eval"), "run", "--model", "hf", "--device", "cpu", "--log_samples"]
    given = ["--model_args", f"pretrained={saved},dtype=float32", "--include_path", str(base.FOLDER)]
    chosen = [
        "--tasks",
        "ropescale_passkey",
        "--metadata",
        json.dumps(metadata),
        "--output_path",
        str(tmp_path / "stock"),
    ]
    done = subprocess.run([*command, *given, *chosen], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "stock").rglob("samples_*.jsonl")
    rows = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["filtered_resps"][0] for row in rows] == [sample["reply"] for sample in cell.samples]
    assert [row["score"] for row in rows] == [sample["score"] for sample in cell.samples]
    assert len(rows) == 6
