"""Evaluation through vLLM against the same in Transformers, in vLLM's own environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from exports import in_vllm, recorded

import ropescale
from ropescale.evals import results
from ropescale.evals.results import RECORD, UNPATCHED, Arm, Results
from ropescale.evals.served import PREFIX, YOUNG
from ropescale.export.engines.vllm import python_with_vllm

pytestmark = in_vllm
ROOT = Path(__file__).parents[2]
SERVING = ["--backend", "vllm"]
LOADING = "Initializing a V1 LLM engine"  # what vLLM says once for each model that it loads
ASKED = ["--samples", "2", "--depths", "0,1"]
FEW = ["--windows", "1", *ASKED]


def environment(place: Path) -> dict[str, str]:
    """Of a process that evaluates: vLLM says what it loads, and takes little of the machine."""
    (place / "temporary").mkdir(exist_ok=True)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return mine | {
        "TMPDIR": str(place / "temporary"),
        "OMP_NUM_THREADS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }


def command(*asked: str) -> list[str]:
    return [python_with_vllm(), "-m", "ropescale.cli", "eval", *asked]


def evaluated(place: Path, folder: str, *asked: str) -> tuple[Results, str]:
    """The results of a command in the environment that has vLLM, and what it said."""
    said = subprocess.run(
        command(*asked, "--output", str(place / folder)),
        capture_output=True,
        text=True,
        check=False,
        env=environment(place),
        cwd=place,
    )
    assert said.returncode == 0, said.stderr[-3000:]
    return results.read(place / folder), said.stdout + said.stderr


def require_alike(served: Results, loaded: Results) -> None:
    """Every answer is the same, every perplexity within 0.1 %."""
    assert served.cells.keys() == loaded.cells.keys()
    assert any(cell.of_losses for cell in served.cells.values())
    for key, one in served.cells.items():
        two = loaded.cells[key]
        assert one.stated == two.stated, key
        if one.of_losses:
            assert [sample["tokens"] for sample in one.samples] == [sample["tokens"] for sample in two.samples]
            assert one.perplexity == pytest.approx(two.perplexity, rel=1e-3), key
        elif one.task != RECORD:
            assert one.samples == two.samples, key
            assert one.scores == two.scores, key


def test_the_environment_has_this_checkout() -> None:
    found = subprocess.run(
        [python_with_vllm(), "-c", "import ropescale; print(ropescale.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        cwd="/",
    )
    assert Path(found.stdout.strip()).is_relative_to(ROOT)


def test_the_embedded_checkpoint_has_the_figures_of_transformers_and_is_loaded_once_an_arm(tmp_path: Path) -> None:
    recorded(tmp_path / "mine", "tiny", method="by_parts", factor=4)
    asked = ["tiny", "--methods", "yarn,ntk", "--factors", "4", "--adapters", str(tmp_path / "mine"), *FEW]
    asked += ["--lengths", "128,512", "--tasks", "position,perplexity,passkey,cloze"]
    served, said = evaluated(tmp_path, "served", *asked, *SERVING)
    loaded, _ = evaluated(tmp_path, "loaded", *asked)
    require_alike(served, loaded)
    assert [arm.label for arm in served.arms()] == ["none", "yarn x4", "ntk x4", "by_parts+mine x4"]
    assert said.count(LOADING) == 4
    assert not [*(tmp_path / "temporary").glob(f"{PREFIX}*")]
    # the arms are other models: a comparison of one with itself would pass as well
    found = {arm.label: served.cell(arm, "perplexity", 512).perplexity for arm in served.arms()}  # type: ignore[union-attr]
    assert found["none"] > 1.2 * found["yarn x4"]
    assert abs(found["ntk x4"] / found["yarn x4"] - 1) > 0.01


def test_smollm2_has_the_figures_of_transformers(tmp_path: Path) -> None:
    asked = ["smollm2", "--methods", "yarn", "--factors", "2", "--windows", "1", "--samples", "1", "--depths", "0,1"]
    asked += ["--lengths", "1024,2048", "--tasks", "position,passkey,cloze", "--limit", "20"]
    served, _ = evaluated(tmp_path, "served", *asked, *SERVING)
    loaded, _ = evaluated(tmp_path, "loaded", *asked)
    require_alike(served, loaded)


def test_a_checkpoint_that_was_saved_patched_is_served_as_it_is(tmp_path: Path) -> None:
    model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    model.save_pretrained(tmp_path / "saved")
    ropescale.evals.tokens.named_tokenizer("tiny").save_pretrained(tmp_path / "saved")
    asked = ["saved", "--methods", "none", "--lengths", "128,512", "--tasks", "position,passkey", *FEW]
    served, _ = evaluated(tmp_path, "served", *asked, *SERVING)
    loaded, _ = evaluated(tmp_path, "loaded", *asked)
    require_alike(served, loaded)
    assert served.settings.base == "as saved: yarn x4"


def test_a_killed_run_leaves_nothing_of_its_arm_and_goes_on(tmp_path: Path) -> None:
    asked = ["tiny", "--methods", "ntk", "--factors", "4", "--lengths", "128,512", "--tasks", "passkey,cloze", *ASKED]
    folder = tmp_path / "served"
    process = subprocess.Popen(
        command(*asked, *SERVING, "--output", str(folder)),
        env=environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        written = folder / "results.jsonl"
        while not (written.exists() and len(written.read_text().splitlines()) > 2):  # the records, and a cell
            assert process.poll() is None
            time.sleep(0.2)
        engines = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, left = psutil.wait_procs(engines, timeout=120)
    assert not left  # vLLM's own processes end with it
    known = {"run.json", "results.jsonl", "timings.jsonl", ".cells"}
    assert {path.name for path in folder.iterdir()} <= known
    before = [json.loads(line) for line in written.read_text().splitlines() if line.endswith("}")]
    for place in (tmp_path / "temporary").glob(f"{PREFIX}*"):
        os.utime(place, (time.time() - 2 * YOUNG,) * 2)
    served, _ = evaluated(tmp_path, "served", *asked, *SERVING)
    assert not [*(tmp_path / "temporary").glob(f"{PREFIX}*")]
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert lines[: len(before)] == before
    assert len(lines) == len(served.cells) == 2 + 2 * 3
    assert served.arms() == [UNPATCHED, Arm(method="ntk", factor=4.0)]


def test_an_argument_that_vllm_does_not_have_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    given = json.dumps({"tensor_paralel_size": 2})
    asked = command("tiny", *SERVING, "--methods", "none", "--engine-args", given, "--output", str(tmp_path / "a"))
    said = subprocess.run(asked, capture_output=True, text=True, check=False, env=environment(tmp_path), cwd=tmp_path)
    assert said.returncode == 2
    assert "--engine-args: must be arguments of vllm.EngineArgs, got 'tensor_paralel_size'" in said.stderr
    assert "did you mean 'tensor_parallel_size'?" in said.stderr
    assert not (tmp_path / "a").exists()
