"""Arms as checkpoints for an engine: what is in them, that no weight is copied, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from exports import recorded
from filelock import FileLock
from merges import adapter, lora
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError
from ropescale.evals import results
from ropescale.evals.bench import Bench
from ropescale.evals.plan import Options, Plan
from ropescale.evals.results import UNPATCHED, Arm
from ropescale.evals.served import LOCK, PREFIX, YOUNG, Served

TINY = resolve("tiny")
IDS = torch.arange(2, 302).unsqueeze(0)  # beyond the embedded model's 128 tokens


def served(model: str = TINY, original: int = 128, **given: Any) -> Served:
    options = Options(model=model, backend="vllm", **{"factors": (4.0,), **given})
    return Served(options, model, Plan.of(options, original))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def as_transformers_reads(folder: Path) -> torch.Tensor:
    """The logits of a folder by Transformers alone, from the config that is there."""
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def copied(folder: Path) -> int:
    """Bytes of weights in a folder that are in no other place."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors") if not file.is_symlink())


@pytest.mark.parametrize("method", ["yarn", "ntk", "linear"])
def test_an_arm_is_the_patched_model_and_no_weight_is_copied(method: str, place: Path) -> None:
    with served(methods=(method,)).folder(Arm(method=method, factor=4.0)) as folder:
        config = json.loads((folder / "config.json").read_text())
        if method == "linear":  # stated by the length that an engine multiplies
            assert config["max_position_embeddings"] == 128
        expected = logits(ropescale.patch(ropescale.load("tiny"), method, factor=4))
        assert (as_transformers_reads(folder) - expected).abs().max() < 1e-5
        assert (folder / "model.safetensors").resolve() == Path(TINY, "model.safetensors").resolve()
        assert copied(folder) == 0
    assert not [*place.iterdir()]


def test_the_model_as_it_is_is_read_as_far_as_the_longest_length() -> None:
    asked = served(methods=("yarn",), lengths=(128, 256))
    assert asked.reach(UNPATCHED) == 512  # as any arm
    with asked.folder(UNPATCHED) as folder:
        assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 512
        assert (as_transformers_reads(folder) - logits(ropescale.load("tiny"))).abs().max() < 1e-5


def test_files_of_a_checkpoint_in_several_are_links_each(tmp_path: Path) -> None:
    ropescale.load("tiny").save_pretrained(tmp_path / "parts", max_shard_size="1MB")
    with served(str(tmp_path / "parts")).folder(Arm(method="yarn", factor=4.0)) as folder:
        files = [*folder.glob("*.safetensors")]
        assert len(files) > 1
        assert copied(folder) == 0
        expected = logits(ropescale.patch(ropescale.load("tiny"), "yarn", factor=4))
        assert (as_transformers_reads(folder) - expected).abs().max() < 1e-5


def test_rotary_tables_of_the_old_length_do_not_come_along(tmp_path: Path) -> None:
    old = tmp_path / "old"
    ropescale.load("tiny").save_pretrained(old)
    weights = load_file(old / "model.safetensors")
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(weights | {table: torch.ones(16)}, old / "model.safetensors", metadata={"format": "pt"})
    arm = Arm(method="yarn", factor=4.0)
    with warnings.catch_warnings(record=True) as said, served(str(old)).folder(arm) as folder:
        assert copied(folder) > 0  # the one case in which a file is copied
        assert load_file(folder / "model.safetensors").keys() == weights.keys()
    assert any("rotary tables" in str(one.message) for one in said)


def test_adapters_are_merged_into_weights_of_their_own(tmp_path: Path) -> None:
    trained = recorded(tmp_path / "trained", "tiny", method="yarn", factor=4)
    adapter(tmp_path / "plain", TINY, lora()())
    asked = served(methods=("ntk",), adapters=(str(tmp_path / "trained"), str(tmp_path / "plain")))
    plain = PeftModel.from_pretrained(ropescale.load("tiny"), tmp_path / "plain")
    longer = PeftModel.from_pretrained(ropescale.patch(ropescale.load("tiny"), "ntk", factor=4), tmp_path / "plain")
    expected = {"yarn+trained": trained, "none+plain": plain, "ntk+plain": longer}
    found = {arm.method: arm for arm in asked._options.trained}
    assert found.keys() == expected.keys()
    for name, arm in found.items():
        with asked.folder(arm) as folder:
            assert (as_transformers_reads(folder) - logits(expected[name])).abs().max() < 1e-4, name
            assert copied(folder) > 0
    assert asked.record(found["yarn+trained"]).method == "yarn"
    assert asked.record(found["none+plain"]) is None


def test_nothing_stays_of_an_arm_that_fails(place: Path) -> None:
    def stopped() -> None:
        with served().folder(Arm(method="yarn", factor=4.0)):
            assert [*place.iterdir()]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not [*place.iterdir()]


def test_what_another_run_left_is_removed_and_what_it_holds_is_not(place: Path) -> None:
    left, held, young = (Path(tempfile.mkdtemp(prefix=PREFIX)) for _ in range(3))
    (left / "arm").mkdir()
    linked = place / f"{PREFIX}elsewhere"
    linked.symlink_to(left)
    long_ago = time.time() - 2 * YOUNG
    with FileLock(held / LOCK):
        for old in (left, held):
            os.utime(old, (long_ago, long_ago))
        with served().folder(Arm(method="yarn", factor=4.0)) as ours:
            assert {*place.iterdir()} == {held, young, linked, ours.parent}


KILLED = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from ropescale.evals.plan import Options, Plan
from ropescale.evals.results import Arm
from ropescale.evals.served import Served
options = Options(model=sys.argv[2], backend="vllm", methods=("yarn",), factors=(4.0,))
with Served(options, sys.argv[2], Plan.of(options, 128)).folder(Arm(method="yarn", factor=4.0)):
    print("here", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_what_a_killed_run_left_is_removed_by_the_next_and_what_is_in_use_is_not(place: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(place), TINY], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        (theirs,) = place.glob(f"{PREFIX}*")
        long_ago = time.time() - 2 * YOUNG
        os.utime(theirs, (long_ago, long_ago))
        with served().folder(Arm(method="yarn", factor=4.0)):
            assert theirs.is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert theirs.is_dir()
        with served().folder(Arm(method="yarn", factor=4.0)) as ours:
            assert [*place.iterdir()] == [ours.parent]
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"methods": ("yarn", "self_extend")},
            "eval: methods must be ones that the backend holds, got self_extend x4 with vllm (self_extend: must be a "
            "method of fixed frequencies to be exported, got positions that act in attention, which no engine does); "
            "run it with backend transformers, in a folder of its own (output=DIR)",
        ),
        ({"methods": ("dynamic_yarn",)}, "got dynamic_yarn x4 with vllm (...frequencies that depend on length"),
        ({"methods": ("yarn",), "knobs": {"yarn": {"log_n": True}}}, "got yarn x4 with vllm (...logarithm"),
    ],
)
def test_what_no_engine_does_is_refused_by_name_before_anything_is_loaded(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Bench(Options(model="tiny", backend="vllm", factors=(4.0,), **given))
    assert all(part in str(caught.value) for part in text.split("..."))


def test_an_adapter_that_was_trained_with_such_a_method_is_refused_too(tmp_path: Path) -> None:
    recorded(tmp_path / "late", "tiny", method="self_extend", factor=4)
    with pytest.raises(InvalidArgumentError, match=r"got self_extend\+late x4 with vllm"):
        Bench(Options(model="tiny", backend="vllm", methods=("none",), adapters=(str(tmp_path / "late"),)))


def test_lengths_beyond_the_positions_of_a_scaled_checkpoint_are_refused(tmp_path: Path) -> None:
    ropescale.rescale_checkpoint("tiny", tmp_path / "scaled", "yarn", factor=4)
    path = str(tmp_path / "scaled")
    with pytest.raises(InvalidArgumentError) as caught:
        served(path, methods=("none",), lengths=(128, 1024))
    assert str(caught.value) == (
        "eval: llama: lengths must be at most 512 tokens with rope_type yarn, beyond which engines have no positions, "
        "got 1,024; ask for shorter ones"
    )
    assert served(path, methods=("none",), lengths=(128, 512)).reach(UNPATCHED) == 512


def test_a_launch_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidArgumentError, match=r"must be started as one process, got WORLD_SIZE 2"):
        Bench(Options(model="tiny", backend="vllm", methods=("none",)))


def test_a_budget_needs_a_speed_that_is_known_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "tiny", "--backend", "vllm", "--methods", "none", "--budget", "30"]) == 2
    assert "--budget: is of the backend transformers" in capsys.readouterr().err


def test_cells_of_two_backends_do_not_share_a_folder(folder: Path) -> None:
    settings = results.read(folder).settings
    with pytest.raises(InvalidArgumentError, match=r"must be of the same backend \('transformers'\), got 'vllm'"):
        results.begun(folder, replace(settings, backend="vllm", weights="fedcba9876543210"))


STARTING = """
import subprocess, sys, time
from ropescale.evals.watch import ending_together
before = subprocess.Popen(["sleep", "600"], start_new_session=True)
with ending_together():
    after = subprocess.Popen(["sleep", "600"], start_new_session=True)
    time.sleep(3)
    print(before.pid, after.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_what_a_killed_process_has_started_ends_with_it_and_what_it_had_before_does_not() -> None:
    process = subprocess.Popen([sys.executable, "-c", STARTING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    before, after = (psutil.Process(int(number)) for number in process.stdout.readline().split())
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        gone, _ = psutil.wait_procs([after], timeout=60)
        assert gone == [after]
        assert before.is_running()
    finally:
        process.kill()
        before.kill()
