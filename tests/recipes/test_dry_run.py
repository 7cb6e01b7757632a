"""A dry run refuses what the run refuses before it computes, says what it would do, and leaves everything alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluations import write_evaluation
from safetensors.torch import load_file, save_file
from test_asked import LATE, STEPS, arguments, trained

from ropescale.checkpoints import resolve
from ropescale.cli import main
from ropescale.contents import read_tokenizer
from ropescale.destinations import sole_writer
from ropescale.evals import grid
from ropescale.loading import Loading

EVAL = ["eval", "tiny", "--methods", "yarn", "--tasks", "cloze", "--limit", "1"]


def tree(folder: Path) -> dict[str, Any]:
    """Every file and folder, with its content."""
    return {
        str(one.relative_to(folder)): os.readlink(one) if one.is_symlink() else one.is_file() and one.read_bytes()
        for one in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loading, "model", lambda *_, **__: pytest.fail("a model was loaded"))


def said(given: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(given)
    told = capsys.readouterr()
    return code, " ".join(told.out.split()), told.err.strip().rpartition("\n")[2]


@pytest.mark.usefixtures("unloaded")
def test_a_training_is_planned_and_nothing_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path / "deep" / "out", cache_dir=None, data=None, max_steps=7, gradient_accumulation_steps=3)
    monkeypatch.setenv("ROPESCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    code, out, _ = said(["train", "lora", *given, "--dry-run"], capsys)
    assert code == 0
    assert "tiny, 918,656 parameters, in float32" in out
    assert "yarn, from 128 to 256 tokens" in out
    assert f"7 of 6 rows: {7 * 6 * 64:,} tokens" in out
    assert "MiB by formula" in out
    assert out.endswith("next: ropescale train lora " + " ".join(given))
    assert tree(tmp_path) == {}


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("case", [*LATE, "too little", "no such data", "held out", "an adapter", "a length"])
def test_a_dry_run_refuses_what_a_training_refuses(
    case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more: dict[str, tuple[dict[str, Any], str]] = {
        "too little": ({"length": 4096, "factor": 32}, ""),
        "no such data": ({"data": place / "nowhere"}, ""),
        "held out": ({"eval_texts": "held_out", "eval_lengths": 100_000}, ""),
        "an adapter": ({"adapter": place, "lora_dropout": None}, ""),
        "a length": ({"length": 4096}, ""),
    }
    given = ["train", "lora", *arguments(place / "refused", **(more | LATE)[case][0])]
    assert main(given) == 2
    expected = capsys.readouterr().err.strip().rpartition("\n")[2]
    before = tree(place)
    assert said([*given, "--dry-run"], capsys)[::2] == (2, expected)
    assert tree(place) == before


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def with_more_tokens(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    tokenizer.add_tokens(["engine"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("spoil", [without_a_weight, cut_short, with_more_tokens])
def test_a_dry_run_finds_weights_that_a_training_could_not_begin_with(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(resolve("tiny"), tmp_path / "base"))
    spoil(base)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} engine " * 90}) + "\n" for n in range(6)))
    given = ["train", "lora", *arguments(tmp_path / "out", model=base)]
    code, _, dry = said([*given, "--dry-run"], capsys)
    assert not (tmp_path / "out").exists()
    assert code == main(given) == 2
    assert dry == capsys.readouterr().err.strip().rpartition("\n")[2]


def test_a_dry_run_knows_a_run_that_goes_on_and_one_that_is_another(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(place / "done", save_steps=2)
    monkeypatch.setattr(Loading, "model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setenv("COLUMNS", "200")
    before = tree(place)
    given = ["train", "lora", "--dry-run", *arguments(place / "done", save_steps=2)]
    assert "finished; nothing to do" in said(given, capsys)[1]
    assert f"going on after checkpoint-{STEPS}" in said([*given, f"--max-steps={STEPS + 1}"], capsys)[1]
    code, _, err = said([*given, "--seed=5"], capsys)
    assert (code, err.partition(" (")[0].rpartition(" ")[2]) == (2, "seed")
    assert tree(place) == before


@pytest.mark.parametrize("verb", ["eval", "train"])
@pytest.mark.parametrize("taken", ["file", "file/below", "link to a file", "in use", "name" * 80])
def test_a_dry_run_refuses_an_output_that_the_run_refuses(
    verb: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "_run_missing", lambda *_: pytest.fail("something was run"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "link to a file").symlink_to("file")
    folder = tmp_path / taken
    given = EVAL if verb == "eval" else ["train", "lora", *arguments(tmp_path / "x")]
    given = [*(one for one in given if not one.startswith("--output")), "--output", str(folder)]
    with sole_writer(tmp_path / "in use"):
        assert main(given) == 2
        expected = capsys.readouterr().err.strip().rpartition("\n")[2]
        before = tree(tmp_path)
        assert said([*given, "--dry-run"], capsys)[::2] == (2, expected)
        assert tree(tmp_path) == before
    assert expected.startswith("ropescale: --output: ")


@pytest.mark.parametrize("fault", ["other settings", "damaged", "a link", "two names", "no run.json", "a folder"])
def test_a_dry_run_refuses_results_that_the_run_refuses(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "_run_missing", lambda *_: pytest.fail("something was run"))
    (tmp_path / "out").mkdir()
    folder = write_evaluation(tmp_path / "out")
    if fault == "damaged":
        (folder / "results.jsonl").write_text("[]\n")
    elif fault == "no run.json":
        (folder / "run.json").unlink()
    elif fault in ("a link", "two names"):
        monkeypatch.setattr(grid.results.Settings, "joined", lambda self, *_: self)
        (folder / "results.jsonl").rename(tmp_path / "elsewhere")
        make = os.symlink if fault == "a link" else os.link
        make(tmp_path / "elsewhere", folder / "results.jsonl")
    elif fault == "a folder":
        for name in ("results.jsonl", "timings.jsonl", "run.json"):
            (folder / name).unlink()
        (folder / "run.json").mkdir()
    before = tree(tmp_path)
    code, _, dry = said([*EVAL, "--output", str(folder), "--dry-run"], capsys)
    assert tree(tmp_path) == before
    assert (code, main([*EVAL, "--output", str(folder)])) == (2, 2)
    assert dry == capsys.readouterr().err.strip().rpartition("\n")[2]
    because = {"a link": "which is a link", "two names": "a hard link", "no run.json": "run.json too"}
    assert because.get(fault, "") in dry


def test_a_dry_run_of_an_evaluation_leaves_a_folder_of_results_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*EVAL, "--output", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / ".lock").unlink(missing_ok=True)
    before = tree(tmp_path)
    capsys.readouterr()
    code, out, _ = said([*EVAL, "--output", str(tmp_path / "out"), "--dry-run"], capsys)
    assert (code, "nothing was run" in out) == (0, True)
    assert tree(tmp_path) == before
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["sessions"]) == 1
