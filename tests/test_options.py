"""Every option of the verbs that read a config or plan a grid changes something, or is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ropescale import cli
from ropescale.evals import grid

ROOT = Path(__file__).parent.parent
TINY = ROOT / "ropescale" / "checkpoints" / "tiny"
MODEL = "MODEL"  # the embedded model, scaled linearly by 4
# verb -> the command that options are added to; then option -> a value that must make a difference
BASE = {
    "inspect": [MODEL],
    "rescale": [MODEL, "DST", "--existing", "replace", "--original-length", "128", "--factor", "4"],
    "plot": [MODEL, "--original-length", "128", "--factor", "4", "--output", "a.svg"],
    "explain": [MODEL, "--original-length", "128", "--methods", "yarn", "--factor", "4", "--output", "a.html"],
    "memory": [MODEL, "--length", "512"],
    "eval": [MODEL],
}
VALUES: dict[str, dict[str, list[str]]] = {
    "inspect": {"original_length": ["256"]},
    "rescale": {
        "method": ["ntk"],
        "factor": ["8"],
        "target_length": ["1024"],
        "original_length": ["256"],
        "existing": ["compose"],
        "layers": ["full"],
        "knobs": ['{"beta_fast": 16}'],
        "link": [],
    },
    "plot": {
        "methods": ["ntk"],
        "factor": ["8"],
        "length": ["1024"],
        "original_length": ["256"],
        "existing": ["compose"],
        "layers": ["full"],
        "output": ["b.svg"],
    },
    "explain": {
        "methods": ["ntk"],
        "factor": ["8"],
        "length": ["1024"],
        "original_length": ["256"],
        "existing": ["compose"],
        "output": ["b.html"],
    },
    "memory": {"length": ["1024"], "rows": ["2"], "dtype": ["float32"]},
    "eval": {
        "methods": ["ntk"],
        "factors": ["8"],
        "lengths": ["64"],
        "depths": ["0.5"],
        "samples": ["3"],
        "seed": ["7"],
        "dtype": ["bfloat16"],
        "device": ["meta"],
        "original_length": ["256"],
        "existing": ["compose"],
        "layers": ["full"],
        "tasks": ["needle"],
        "windows": ["2"],
        "stride": ["0.25"],
        "texts": ["speeches"],
        "evaluator": ["smollm2"],
        "include_path": ["tasks"],
        "limit": ["5"],
        "backend": ["vllm"],
        "chat": [],
        "knobs": ['{"yarn": {"beta_fast": 16}}'],
        "metadata": ['{"squad": "dev.json"}'],
        "adapters": ["nowhere"],
        "report_to": ["tensorboard"],
        "output": ["elsewhere"],
        "dry_run": [],
        "task_folder": [],
        "quick": [],
        "budget": ["5"],
    },
}
# What lets the code of a checkpoint run shows on a checkpoint with code alone, which tests of their own have
APART = {"help", "trust_remote_code", "model", "source", "destination"}


def parsers() -> dict[str, Any]:
    return next(action for action in cli._parser()._actions if action.dest == "name").choices


def options(verb: str) -> dict[str, str]:
    return {
        action.dest: action.option_strings[0]
        for action in parsers()[verb]._actions
        if action.dest not in APART and action.option_strings
    }


@pytest.mark.parametrize("verb", BASE)
def test_every_option_has_a_value_here(verb: str) -> None:
    # --layers of explain shows on a model whose kinds of layers have rotations of their own
    assert set(options(verb)) - ({"layers"} if verb == "explain" else set()) == set(VALUES[verb])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("scaled") / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    config["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def outcome(
    verb: str, given: list[str], model: Path, folder: Path, monkeypatch: Any, capsys: Any
) -> tuple[int, str, dict[str, Any]]:
    """The code, what is said, and every file with its content and its number of links; of `eval` what would be run."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    seen: list[Any] = []
    monkeypatch.setattr(grid, "run", lambda *arguments: seen.append(arguments[:2]) or stop())
    monkeypatch.setattr(grid, "print_cost", lambda options, console, folder: seen.append("a dry run"))
    monkeypatch.setattr(grid, "fitted", lambda options, minutes, folder: seen.append(minutes) or ("", options))
    code = cli.main([verb, *(str(model) if one == MODEL else one for one in given)])
    said = capsys.readouterr()
    files = {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_nlink)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
    return code, said.out.partition("next:")[0], {**files, "seen": seen}


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb in BASE for option in VALUES[verb]])
def test_an_option_changes_something_or_is_refused(
    verb: str,
    option: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = BASE[verb]
    name = options(verb)[option]
    if option == "length" and "--factor" in base:  # one stands in the place of the other
        base = [one for i, one in enumerate(base) if one != "--factor" and base[max(i - 1, 0)] != "--factor"]
    before = outcome(verb, base, model, tmp_path / "before", monkeypatch, capsys)
    assert before[0] in (0, 130), before
    after = outcome(verb, [*base, name, *VALUES[verb][option]], model, tmp_path / "after", monkeypatch, capsys)
    assert after[0] in (0, 2, 130)
    assert after[0] == 2 or after[1:] != before[1:], f"{verb} {name} was accepted and changed nothing"
