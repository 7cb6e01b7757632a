"""`ropescale eval`: cells, resuming after a kill, what is refused, and that every arm gets the same rows."""

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
from grids import COMMAND, YARN, run
from transformers import LlamaForCausalLM

import ropescale
from ropescale.errors import InvalidArgumentError
from ropescale.evals.bench import Bench
from ropescale.evals.results import UNPATCHED


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
