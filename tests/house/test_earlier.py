"""What earlier versions wrote is read with equal content: patched models, checkpoints, adapters, results, runs."""

from __future__ import annotations

import json
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from earlier.make import PATCHES, TOKENS, small
from transformers import AutoModelForCausalLM

import ropescale
from ropescale import adapters, cli
from ropescale.evals.report.findings import read_findings
from ropescale.evals.results import read

TESTS = Path(__file__).parents[1]
EARLIER = sorted(path.parent for path in (TESTS / "earlier").glob("*/expected.json"))
TINY = TESTS.parent / "ropescale" / "checkpoints" / "tiny"


@pytest.fixture(params=EARLIER, ids=lambda path: path.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy in which every checkpoint has its weights."""
    folder = shutil.copytree(request.param, tmp_path / "kept")
    for path in folder.iterdir():
        if (path / "config.json").is_file() and not (path / "model.safetensors").is_file():
            shutil.copy(folder / "base" / "model.safetensors", path)
    return folder


def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([TOKENS])).logits[0, -1].double()


def same(model: Any, values: list[float]) -> bool:
    return torch.allclose(logits(model), torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-5)


def test_there_is_something_of_earlier_versions() -> None:
    assert EARLIER


@pytest.mark.parametrize("name", PATCHES)
def test_a_patched_model_is_patched_alike_and_undone(kept: Path, name: str) -> None:
    model = ropescale.load(kept / name)
    assert same(model, expected(kept)[name])
    assert ropescale.record(model).to_dict() == json.loads((kept / name / "config.json").read_text())["ropescale"]
    assert not same(small(), expected(kept)[name])  # or a lost patch would go unseen
    assert torch.equal(logits(ropescale.unpatch(model)), logits(small()))


@pytest.mark.parametrize("name", ["yarn", "rescaled"])
def test_a_checkpoint_with_fixed_frequencies_needs_transformers_alone(kept: Path, name: str) -> None:
    assert same(AutoModelForCausalLM.from_pretrained(kept / name), expected(kept)[name])


def test_an_adapter_gives_the_logits_that_it_gave(kept: Path) -> None:
    assert same(adapters.load_adapter(str(kept / "base"), kept / "adapter"), expected(kept)["adapter"])


def test_the_adapter_of_a_run_is_read(kept: Path) -> None:
    record = adapters.read_record(kept / "trained")
    assert (record.method, record.original_length, record.target_length) == ("yarn", 128, 256)
    adapters.load_adapter(str(TINY), kept / "trained")


def test_results_say_what_they_said_and_are_reported(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_findings(read(kept / "results")).patched
    for row in rows:
        inside, reads, keeps, averages = expected(kept)["results"][row.arm.label]
        assert row.inside == pytest.approx(inside, rel=1e-9)
        assert (row.reads, row.keeps) == (reads, keeps)
        assert {str(length): score for length, score in row.averages.items()} == averages
    assert len(rows) == len(expected(kept)["results"]) == 2
    assert cli.main(["report", str(kept / "results")]) == 0
    assert (kept / "results" / "report.html").is_file()
    following = shlex.split(capsys.readouterr().out.rpartition("next: ropescale ")[2])
    assert "yarn,self_extend" in following  # of which its few prompts do not tell which is better: the same with more
    assert int(following[following.index("--samples") + 1]) > 1
    monkeypatch.chdir(kept)
    assert cli.main(following) == 0


def test_results_are_gone_on_with(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads((kept / "results" / "run.json").read_text())
    cells = (kept / "results" / "results.jsonl").read_text()
    again = run["sessions"][0]["command"].split()[1:]
    code = cli.main([*again[: again.index("--output")], "--output", str(kept / "results")])
    said = capsys.readouterr().err
    if all(version(name) == theirs for name, theirs in run["settings"]["versions"].items()):
        assert code == 0
    else:
        assert code == 2
        assert "must be of the same versions" in said
    assert (kept / "results" / "results.jsonl").read_text() == cells  # nothing was run again
