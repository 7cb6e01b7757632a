"""scripts/gpu.py without a GPU: what it would run is there, and steps that are stopped, fail or end are told apart."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ropescale.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that writes elsewhere, on a machine that says it has one GPU."""
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "scripts" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", made)
    spec.loader.exec_module(made)
    monkeypatch.setattr(made, "WORK", tmp_path / "work")
    monkeypatch.setattr(made, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda one: "one of the test")
    return made


def step(gpu: ModuleType, command: str, **more: object) -> object:
    given = {"name": "one", "shows": "nothing", "command": command, "rehearsal": command, "keeps": ("*.txt",)}
    return gpu.Step(**given | more)


def ended(gpu: ModuleType, one: object, *, again: bool = False) -> bool:
    return bool(gpu.done(one, time.monotonic() + 1000, again=again))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be used")
def test_without_a_gpu_it_says_so_and_ends_with_2() -> None:
    told = subprocess.run([sys.executable, "scripts/gpu.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert "no GPU" in told.stderr
    assert "--rehearse" in told.stderr


def test_a_dry_run_prints_every_command(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run"])
    assert gpu.main() == 0
    told = capsys.readouterr().out
    for one in gpu.STEPS:
        assert one.name in told
        assert one.shows in told
        assert gpu.typed(one, tmp_path / "work") in told
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("verb", ["eval", "search", "train"])
@pytest.mark.parametrize("which", ["command", "rehearsal"])
def test_every_option_of_a_command_is_one_of_its_verb(
    gpu: ModuleType, verb: str, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [getattr(one, which) for one in gpu.STEPS if f" {verb} " in getattr(one, which)]
    assert asked
    main([verb, "--help"])
    if verb == "train":
        main([verb, "lora", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    for command in asked:
        given = set(re.findall(r" (--[a-z-]+)", command.split(f" {verb} ")[1]))
        assert given
        assert given <= known, f"{command}: {given - known}"


def test_a_step_that_ends_is_kept_and_not_run_again(gpu: ModuleType, tmp_path: Path) -> None:
    one = step(gpu, "echo ran >> {out}/log.txt # --output")
    assert ended(gpu, one)
    assert ended(gpu, one)
    assert (tmp_path / "kept" / "one" / "log.txt").read_text() == "ran\n"
    assert (tmp_path / "kept" / "one" / "step.json").exists()
    assert ended(gpu, one, again=True)
    assert (tmp_path / "work" / "one" / "log.txt").read_text() == "ran\n"


def test_a_step_that_fails_keeps_nothing(gpu: ModuleType, tmp_path: Path) -> None:
    assert not ended(gpu, step(gpu, "echo half > {out}/log.txt; exit 3"))
    assert not (tmp_path / "kept").exists()


def test_a_step_that_is_stopped_goes_on_while_it_brings_something(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 0.5)
    counted = "echo ran >> {out}/log.txt; test $(wc -l < {out}/log.txt) -ge 3 || sleep 60"
    assert ended(gpu, step(gpu, counted, resumable=True))
    assert (tmp_path / "kept" / "one" / "log.txt").read_text() == "ran\n" * 3
    assert not ended(gpu, step(gpu, "sleep 60", name="other", resumable=True))
    assert "brought nothing new" in capsys.readouterr().out


def test_what_a_stopped_step_has_begun_is_stopped_too(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 0.5)
    late = "(sleep 2; echo late > {out}/late.txt) & wait"
    assert not ended(gpu, step(gpu, late))
    time.sleep(2.5)
    assert not (tmp_path / "work" / "one" / "late.txt").exists()


def test_a_step_of_two_devices_is_left_on_one(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not ended(gpu, dataclasses.replace(step(gpu, "true"), devices=2))
    assert "needs 2 GPUs, 1 here" in capsys.readouterr().out


@pytest.mark.slow
def test_every_step_runs_in_small(gpu: ModuleType) -> None:
    assert not [one.name for one in gpu.STEPS if not gpu.rehearsed(one)]
