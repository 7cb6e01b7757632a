"""A search on the embedded model: what it finds is a method like any other, by a seed the same, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.errors import AlreadyPatchedError, AlreadyScaledError, InvalidArgumentError
from ropescale.evals.texts import Document, sample
from ropescale.search import Found, search
from ropescale.search.objective import Samples
from ropescale.search.page import page
from ropescale.search.searching import RECORDS

SMALL = {"factor": 2, "candidates": 24, "windows": 2, "batches": 2, "held_out": 4}
WORDS = ["--factor", "2", "--candidates", "24", "--windows", "2", "--batches", "2", "--held-out", "4", "--output"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return read_tokenizer(resolve("tiny"))


@pytest.fixture(scope="module")
def found(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    folder = tmp_path_factory.mktemp("search") / "whole"
    return search(ropescale.load("tiny"), tokenizer, output=folder, **SMALL), folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 205)[None]).logits  # type: ignore[no-any-return]


def entries(folder: Path) -> dict[str, Any]:
    """What a search has written, by name, without its times."""
    lines = (folder / RECORDS).read_text().splitlines()[1:]
    return {one["name"]: one["value"] for one in map(json.loads, lines)}


def test_what_was_found_patches_saves_loads_and_exports(found: tuple[Found, Path], tmp_path: Path) -> None:
    arguments = found[0].arguments
    patched = ropescale.patch(ropescale.load("tiny"), **arguments)
    assert ropescale.record(patched).method == "longrope"
    patched.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(ropescale.load(tmp_path / "saved")), logits(patched))
    words = ["--method", "longrope", "--factor", "2", "--knobs", str(found[1] / "knobs.json")]
    assert cli.main(["rescale", "tiny", str(tmp_path / "rescaled"), *words]) == 0
    assert torch.equal(logits(ropescale.load(tmp_path / "rescaled")), logits(patched))
    assert cli.main(["export", "tiny", str(tmp_path / "exported"), "--to", "transformers", *words]) == 0
    stated = json.loads((tmp_path / "exported" / "config.json").read_text())["rope_parameters"]
    assert stated["long_factor"] == pytest.approx(arguments["long_factor"])
    assert stated["attention_factor"] == arguments["attention_factor"]


def test_the_model_is_as_it_was(tokenizer: Any) -> None:
    model = ropescale.load("tiny").train()
    before, config = logits(model), model.config.to_dict()
    search(model, tokenizer, **{**SMALL, "candidates": 12})
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert model.training
    assert ropescale.record(model) is None


def test_a_candidate_that_is_swapped_in_costs_what_it_does_in_a_model_patched_with_it(
    found: tuple[Found, Path],
) -> None:
    """What was found, on the held-out texts, against a loop over a model that was loaded and patched for it."""
    patched = ropescale.patch(ropescale.load("tiny"), **found[0].arguments)
    tokenizer = read_tokenizer(resolve("tiny"))
    told = []
    for document in sorted(sample(), key=lambda one: -len(one.text))[:4]:
        ids = torch.tensor([tokenizer(document.text)["input_ids"][:256]])
        with torch.no_grad():
            scores = patched(ids).logits[0, :-1].log_softmax(-1)
        told.append(-scores[127:].gather(1, ids[0, 128:, None]).mean().item())
    assert list(found[0].arms["found"].text) == pytest.approx(told, abs=1e-4)


@pytest.mark.slow
def test_a_seed_gives_the_same_and_another_one_does_not(found: tuple[Found, Path], tokenizer: Any) -> None:
    again = search(ropescale.load("tiny"), tokenizer, **SMALL)
    assert again.arguments == found[0].arguments
    assert again.arms == found[0].arms
    assert again.steps == found[0].steps
    other = search(ropescale.load("tiny"), tokenizer, **{**SMALL, "candidates": 12}, seed=1)
    assert other.steps[0] != found[0].steps[0]


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_a_search_that_was_killed_goes_on_to_the_same(found: tuple[Found, Path], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "ropescale.cli", "search", "tiny", *WORDS, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = folder / RECORDS
    until = time.monotonic() + 120
    while time.monotonic() < until and (not records.exists() or "candidate 14" not in records.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with records.open("a") as file:
        file.write('{"name": "candidate 15, ba')  # a line that was torn
    before = entries_of_whole_lines(records)
    assert 0 < len(before) < len(entries(found[1]))
    assert not (folder / "search.json").exists()
    assert cli.main(["search", "tiny", *WORDS, str(folder)]) == 0
    assert entries(folder) == entries(found[1])
    told, whole = (json.loads((one / "search.json").read_text()) for one in (folder, found[1]))
    for only in ("seconds", "command"):
        told.pop(only), whole.pop(only)
    assert told == whole


def entries_of_whole_lines(records: Path) -> list[str]:
    return records.read_text().splitlines()[1:-1]


def test_the_hopeless_are_read_no_further(found: tuple[Found, Path]) -> None:
    names = [name for name in entries(found[1]) if name.startswith("candidate ")]
    for generation in (range(12), range(12, 24)):
        read = [
            {name.partition(",")[0] for name in names if name.endswith(f"half {half}")}
            & {f"candidate {number}" for number in generation}
            for half in (0, 1)
        ]
        assert len(read[0]) == 12
        assert len(read[1]) == 6


@pytest.mark.slow
def test_what_is_found_beats_every_formula_on_texts_and_needles_of_others(tokenizer: Any) -> None:
    told = search(ropescale.load("tiny"), tokenizer, factor=4, candidates=120, compared=99)
    for measure in ("text", "needle"):
        assert told.against(told.best(measure), measure).high < 0


def test_another_search_does_not_go_on_in_its_folder(found: tuple[Found, Path], tokenizer: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^output: must hold a search of the same settings, got "):
        search(ropescale.load("tiny"), tokenizer, output=found[1], **{**SMALL, "windows": 1})


@pytest.mark.slow
def test_two_processes_find_what_one_does(found: tuple[Found, Path], tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--module", "ropescale.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launch, "search", "tiny", *WORDS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert entries(folder) == entries(found[1])
    assert done.stdout.count("results:") == 1


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (
            {"factor": 1},
            "factor: must be a number above 1 and at most 131072, which gives 16777216 tokens, got 1; correct it",
        ),
        (
            {"target_length": 128},
            "target_length: must be a whole number of tokens above the original length (128), and at most",
        ),
        (
            {"target_length": 64},
            "target_length: must be a whole number of tokens above the original length (128), and at most",
        ),
        ({}, "target_length: must be given, or factor instead, got neither; give one of the two"),
        ({"factor": 2, "target_length": 256}, "target_length: must be given, or factor instead, got both"),
        ({"factor": 2, "budget": 0}, "budget: must be minutes above 0, got 0; leave it out"),
        ({"factor": 2, "candidates": 0}, "candidates: must be a whole number of at least 1, got 0; leave it out"),
        ({"factor": 2, "space": "pears"}, "space: must be one of pairs, critical, knobs, got 'pears'"),
        ({"factor": 2, "objective": "loss"}, "objective: must be one of needle, text, position, longppl, sum, got"),
        ({"factor": 2, "weights": {"short": 1, "text": 0, "needle": 0}}, "weights: something beyond the original"),
        ({"factor": 2, "weights": {"txt": 1}}, "weights: unknown figure 'txt'; did you mean 'text'? available: "),
        ({"factor": 2, "weights": {"text": -1}}, "weights: text must be a number of at least 0, got -1; 0 leaves"),
        ({"factor": 2, "needles": 0}, "needles: must be at least 1 where answers count, got 0; give weights="),
        ({"factor": 2, "space": "knobs"}, "method: must be given with space 'knobs', and with no other, got None"),
        ({"factor": 2, "method": "yarn"}, "method: must be given with space 'knobs', and with no other, got 'yarn'"),
        ({"factor": 2, "ranges": {"window": [1, 2]}}, "ranges: must go with a method whose knobs they are, got none"),
        ({"factor": 2, "prefixes": [0]}, "prefixes: must be whole numbers of tokens, from 1, got 0; leave them out"),
        ({"factor": 2, "data": []}, "data: must hold two texts at least, one to search by and one to compare by"),
        ({"factor": 2, "data": "nowhere"}, "texts: must be sample, speeches, or a path to files of texts, got"),
        (
            {"factor": 2, "data": [Document(name=name, text="too short") for name in "ab"]},
            "data: at least one text must hold 256 tokens, got 1 that do not; ask for a shorter context",
        ),
        (
            {"target_length": 32, "original_length": 16},
            "target_length: must hold a needle and its question (",
        ),
    ],
)
def test_a_wrong_call_says_so_and_writes_nothing(
    asked: dict[str, Any], text: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = ropescale.load("tiny")
    with pytest.raises(InvalidArgumentError) as error:
        search(model, tokenizer, output=tmp_path / "out", **asked)
    assert str(error.value).startswith(text)
    assert list(tmp_path.iterdir()) == []
    assert ropescale.record(model) is None


def test_a_model_that_is_patched_or_scaled_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = ropescale.patch(ropescale.load("tiny"), factor=2)
    with pytest.raises(AlreadyPatchedError, match=r"^search: must be given a model that is not patched"):
        search(model, tokenizer, factor=2, output=tmp_path / "out")
    ropescale.unpatch(model)
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(AlreadyScaledError):
        search(model, tokenizer, factor=2, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_knobs_of_a_late_method_are_searched(tokenizer: Any) -> None:
    late = search(
        ropescale.load("tiny"), tokenizer, **{**SMALL, "candidates": 6}, space="knobs", method="rerope",
        ranges={"window": [8, 96]}, log_n=True,
    )  # fmt: skip
    assert late.arguments.keys() == {"method", "factor", "log_n", "window"}
    assert 8 <= late.arguments["window"] <= 96
    assert not late.exports
    assert "rerope" in late.formulas  # as it is by default
    ropescale.patch(ropescale.load("tiny"), **late.arguments)


def test_knobs_that_a_method_needs_are_searched(tokenizer: Any) -> None:
    asked = {**SMALL, "candidates": 6, "space": "knobs", "method": "abf", "ranges": {"theta": [1e4, 1e6]}}
    told = search(ropescale.load("tiny"), tokenizer, **asked)
    assert 1e4 <= told.arguments["theta"] <= 1e6
    assert "abf" in page(told)


def test_ctrl_c_keeps_what_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = Samples.figures

    def interrupted(self: Samples, model: Any) -> Any:
        if "candidate 2" in (tmp_path / RECORDS).read_text():
            raise KeyboardInterrupt
        return judged(self, model)

    monkeypatch.setattr(Samples, "figures", interrupted)
    assert cli.main(["search", "tiny", *WORDS, str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith(
        f"ropescale: stopped; {tmp_path} keeps what was judged, the same command goes on\n"
    )
    assert "candidate 2, batch 0, half 0" in entries(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["longppl", "position"])
def test_other_objectives(objective: str, tokenizer: Any) -> None:
    asked = {**SMALL, "candidates": 12, "objective": objective, "needles": 0}
    told = search(ropescale.load("tiny"), tokenizer, **asked)
    assert told.measures == ["text", "short"]
    assert len({step.best for step in told.steps}) == len(told.steps)


@pytest.mark.slow
def test_a_prefix_that_is_not_scaled_is_tried(tokenizer: Any, tmp_path: Path) -> None:
    search(ropescale.load("tiny"), tokenizer, output=tmp_path, **{**SMALL, "candidates": 12}, prefixes=[4])
    assert {"prefix 0, batch 0, half 0", "prefix 4, batch 1, half 1"} <= entries(tmp_path).keys()


def test_a_budget_is_kept(tokenizer: Any) -> None:
    begun = time.monotonic()
    asked = {**SMALL, "candidates": None, "windows": 1, "batches": 1, "held_out": 2}
    told = search(ropescale.load("tiny"), tokenizer, **asked, budget=0.1)
    assert time.monotonic() - begun < 20
    assert told.steps[-1].candidates >= 12


def test_the_page_says_what_was_found(found: tuple[Found, Path]) -> None:
    written = (found[1] / "search.html").read_text()
    for name in (*found[0].arms, "Held-out samples", "stretch", "nats less than the start"):
        assert name in written
    assert "<script" not in written
