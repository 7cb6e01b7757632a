"""`ropescale recommend`: what it writes, going on, refusals, and its advice followed to the letter."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import ropescale
from ropescale import cli
from ropescale.evals.decision.verdict import Verdict
from ropescale.evals.results import Arm, read
from ropescale.evals.statistics import wilson
from ropescale.recommend import Options, recommend, running
from ropescale.recommend.advice import Advice

QUICK = ["recommend", "tiny", "--target-length", "256", "--methods", "ntk,rerope"]


@pytest.fixture
def few(monkeypatch):
    """As few prompts as can be, and no search."""
    for name in ("RACE", "PROMISE"):
        monkeypatch.setattr(running, name, {"samples": 2, "windows": 2})
    monkeypatch.setattr(running, "LEAST", 2)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def timeless(advice: Advice) -> str:
    """All of it but how long anything took, which is never the same twice."""
    whole = json.dumps({**advice.to_dict(), "slower": 0})
    return re.sub(r"\d[\d.,]* (?:s|min|h)\b|took [\d.]+ of", "a while", whole)


def test_it_ranks_promises_and_says_what_to_type(few, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*QUICK, "--output", "out"]) == 0
    said = capsys.readouterr().out
    told = json.loads(Path("out", "recommend.json").read_text())
    assert told["lines"][0]["arm"]["method"] == told["promise"]["arm"]["method"]
    assert {one["arm"]["method"] for one in told["lines"]} == {"none", "ntk", "rerope"}
    assert told["promise"]["found"]["asked"] == 5 * 2
    assert read(Path("out", "promise-2m")).settings.seed == read(Path("out", "race")).settings.seed + 1
    for part in ("found at 256", "Reading 256 tokens takes", "in bfloat16", "No search: the race took", "next: "):
        assert part in said
    assert said.splitlines()[-1] == f"next: {told['commands'][0]['line']}"
    page = Path("out", "recommend.html").read_text()
    for command in told["commands"]:
        assert shlex.split(command["line"])[1] in page

    measured = {name: data for name, data in content(Path("out")).items() if name.endswith("results.jsonl")}
    assert cli.main([*QUICK, "--output", "out"]) == 0  # goes on, where nothing is left to do
    assert {name: data for name, data in content(Path("out")).items() if name.endswith("results.jsonl")} == measured
    again = json.loads(Path("out", "recommend.json").read_text())
    assert {**again, "slower": 0} == {**told, "slower": 0}


def test_a_stopped_run_goes_on_to_the_same_advice(few, tmp_path, monkeypatch):
    asked = Options(model="tiny", target_length=256, methods=("ntk",))
    whole = recommend(asked, tmp_path / "whole")
    seen = []
    real = running.grid.run

    def stopped(options, folder, command):
        real(options, folder, command)
        seen.append(folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(running.grid, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        recommend(asked, tmp_path / "parts")
    assert seen == ["race"]
    assert not (tmp_path / "parts" / "recommend.json").exists()
    monkeypatch.setattr(running.grid, "run", real)
    again = recommend(asked, tmp_path / "parts")
    assert timeless(again) == timeless(whole)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    return ropescale.rescale_checkpoint("tiny", tmp_path_factory.mktemp("made") / "scaled", "linear", factor=2)


@pytest.fixture(scope="module")
def published(scaled, tmp_path_factory):
    """Scaled by its config alone, as others publish them."""
    folder = tmp_path_factory.mktemp("made") / "published"
    shutil.copytree(scaled, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["ropescale"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["tiny", "--target-length", "128"],
            "--target-length must be above the original length (128 tokens), got 128",
        ),
        (["tiny", "--target-length", "0"], "--target-length must be a whole number of tokens, from 1 to"),
        (
            ["tiny", "--target-length", "256", "--serve-with", "triton"],
            "--serve-with must be one of gguf, mlx, sglang",
        ),
        (["tiny", "--target-length", "256", "--methods", "yran"], "unknown method 'yran'; did you mean 'yarn'?"),
        (["tiny", "--target-length", "256", "--methods", "t5"], "of no use before a training"),
        (["tiny", "--target-length", "256", "--methods", "rerope", "--serve-with", "vllm"], "fixed frequencies"),
        (["tiny", "--target-length", "256", "--data", "short.txt"], "256 tokens"),
        (["tiny", "--target-length", "256", "--data", "nowhere"], "nowhere"),
        (["{scaled}", "--target-length", "512"], "a model must be as it was published, got"),
        (["{published}", "--target-length", "512"], "existing"),
    ],
)
def test_what_cannot_be_is_refused_in_words_and_nothing_is_written(
    given, said, scaled, published, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Four score and seven years ago.")
    words = [one.format(scaled=scaled, published=published) for one in given]
    assert cli.main(["recommend", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.parametrize("budget", ["0", "0m", "-5m", "soon"])
def test_a_budget_is_a_time_above_none(budget, capsys):
    assert cli.main(["recommend", "tiny", "--target-length", "256", f"--budget={budget}"]) == 2
    assert "must be a time above 0, as in 90s, 30m or 2h" in capsys.readouterr().err


def test_a_scaled_model_starts_where_it_is_told_to(few, published, tmp_path):
    asked = Options(model=str(published), target_length=512, methods=("yarn",), existing="compose", texts="sample")
    advice = recommend(asked, tmp_path / "out")
    assert advice.original_length == 256
    assert "--existing compose" in advice.commands[0].line


def test_another_target_has_a_folder_of_its_own(few, tmp_path):
    recommend(Options(model="tiny", target_length=256, methods=("ntk",)), tmp_path / "out")
    before = content(tmp_path)
    with pytest.raises(ropescale.RopescaleError, match="which holds one to 256; choose another folder"):
        recommend(Options(model="tiny", target_length=512, methods=("ntk",)), tmp_path / "out")
    assert content(tmp_path) == before


@pytest.mark.slow
def test_what_an_engine_does_not_hold_is_not_taken_from_an_earlier_run(few, tmp_path):
    asked = Options(model="tiny", target_length=256, methods=("by_parts", "dynamic_yarn"))
    assert recommend(asked, tmp_path / "out").promise.arm.method == "dynamic_yarn"
    advice = recommend(replace(asked, serve_with="mlx"), tmp_path / "out")
    assert advice.promise.arm.method != "dynamic_yarn"
    assert "dynamic_yarn" not in {line.arm.method for line in advice.lines}
    assert "dynamic_yarn" in advice.left_out
    assert advice.form
    assert "--to mlx" in advice.commands[0].line


@pytest.mark.slow
def test_what_a_search_finds_is_an_arm_that_is_taken_only_where_it_is_better(few, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LEAST", 0)
    monkeypatch.setattr(running, "SEARCHING", 0.05)  # of two minutes
    asked = Options(model="tiny", target_length=256, methods=("by_parts",), serve_with="vllm")
    advice = recommend(asked, tmp_path / "out")
    by_method = {line.arm.method: line for line in advice.lines}
    assert {*by_method} == {"none", "by_parts", "longrope"}
    assert len(by_method["longrope"].knobs["long_factor"]) == 16
    assert by_method["longrope"].found.asked == 10
    assert "found factors of the model's own" in advice.searched
    again = recommend(asked, tmp_path / "out")
    assert timeless(again) == timeless(advice)

    confirmed = read(tmp_path / "out" / "promise-2m")
    better, first = Arm(method="longrope", factor=2.0), Arm(method="by_parts", factor=2.0)
    found = SimpleNamespace(method=SimpleNamespace(name="longrope"))
    unsure = running.decide(confirmed)
    race = replace(unsure, verdict=Verdict.TAKE, arm=first, leader=first)
    for verdict in (
        replace(unsure, arm=first),
        replace(unsure, arm=None),
        replace(unsure, arm=better, ties=(object(),)),
    ):
        monkeypatch.setattr(running, "decide", lambda results, verdict=verdict: verdict)
        assert running._taken(race, confirmed, found) == first
    monkeypatch.setattr(running, "decide", lambda results: replace(unsure, arm=better, ties=()))
    assert running._taken(race, confirmed, found) == better
    assert running._taken(race, confirmed, None) == first


@pytest.mark.slow
def test_the_advice_followed_to_the_letter_gives_what_it_promised(tmp_path):
    """Every line as a user would paste it, in a shell of its own; what it promised is asked other prompts."""
    place = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "2"}

    def paste(line: str) -> str:
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    paste("ropescale recommend tiny --target-length 512")
    told = json.loads((tmp_path / "out" / "recommend-tiny-512" / "recommend.json").read_text())
    for command in told["commands"][:2]:  # written, and checked
        paste(command["line"])
    folder = next((tmp_path / "out").glob("tiny-*-check"))
    results = read(folder)
    promise = told["promise"]
    for length, name in ((512, "found"), (128, "own")):
        (cell,) = [one for key, one in results.cells.items() if key[3] == length and not one.of_losses]
        scores = [one["score"] for one in cell.samples]
        assert len(scores) == 100
        low, high = wilson(promise[name]["found"], promise[name]["asked"])
        assert low <= sum(scores) / len(scores) <= high, (name, sum(scores), low, high)
    (text,) = [one for one in results.cells.values() if one.of_losses]
    seen = [
        (nats, count)
        for one in text.samples
        for end, nats, count in zip(one["edges"][1:], one["nll"], one["tokens"], strict=True)
        if 128 < end <= 512
    ]
    # of the same texts, so that it is the same figure
    assert math.exp(sum(nats for nats, _ in seen) / sum(count for _, count in seen)) == pytest.approx(
        promise["perplexity"], rel=1e-4
    )
