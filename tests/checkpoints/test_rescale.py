"""ropescale rescale: the config of a patched save, written without loading a weight, and nothing half-done."""

import hashlib
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from families import NAMES, family, in_turn, logits, opened
from transformers import AutoModelForCausalLM, AutoTokenizer

import ropescale
from ropescale import cli, rescaling
from ropescale.checkpoints import resolve
from ropescale.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of a user, with a tokenizer and limits."""
    family("llama").save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(resolve("tiny")).save_pretrained(tmp_path / "source")
    for name, limit in (("tokenizer_config.json", "model_max_length"), ("generation_config.json", "max_length")):
        path = tmp_path / "source" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), limit: 64}))
    return tmp_path / "source"


def config_without_proof(folder: Path) -> str:
    """The text of a config but for how the patch was shown: on a disk that is still to come."""
    values = json.loads((folder / "config.json").read_text())
    values["ropescale"].pop("proof")
    return json.dumps(values, indent=2)


# test_saving.py has those between saved, loaded and unpatched, and tests/house/test_bars.py every family rescaled
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", in_turn(NAMES, 1, 2))
def test_rescaled_saved_and_live_are_one_model(name: str, tmp_path: Path) -> None:
    """Config bit for bit, logits within 1e-6, and the source as it was."""
    family(name).save_pretrained(tmp_path / "source")
    before = contents(tmp_path / "source")
    live = ropescale.patch(ropescale.load(tmp_path / "source"), "yarn", factor=4)
    live.save_pretrained(tmp_path / "saved")
    folder = ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "rescaled", "yarn", factor=4)
    assert contents(tmp_path / "source") == before
    saved, rescaled = contents(tmp_path / "saved"), contents(folder)
    assert config_without_proof(folder) == config_without_proof(tmp_path / "saved")
    assert rescaled.get("generation_config.json") == saved.get("generation_config.json")
    assert rescaled["model.safetensors"] == before["model.safetensors"]
    expected = logits(live)
    loaded = ropescale.load(folder)
    for other in (opened(folder), loaded):
        assert (logits(other) - expected).abs().max() <= 1e-6
    assert ropescale.record(loaded) == ropescale.record(live)
    assert torch.equal(logits(ropescale.unpatch(loaded)), logits(family(name)))


@pytest.mark.parametrize("method", ["linear", "ntk", "by_parts", "llama3", "power"])
def test_every_spelling_is_that_of_a_patched_save(method: str, source: Path, tmp_path: Path) -> None:
    live = ropescale.patch(ropescale.load(source), method, target_length=200)
    live.save_pretrained(tmp_path / "saved")
    folder = ropescale.rescale_checkpoint(source, tmp_path / "rescaled", method, target_length=200)
    assert config_without_proof(folder) == config_without_proof(tmp_path / "saved")


def test_limits_of_tokenizer_and_generation_come_along(source: Path, tmp_path: Path) -> None:
    folder = ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 256
    assert json.loads((folder / "generation_config.json").read_text())["max_length"] == 256
    assert AutoModelForCausalLM.from_pretrained(folder).config.max_position_embeddings == 256
    before = json.loads((source / "tokenizer_config.json").read_text())
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {**before, "model_max_length": 256}
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_limit_that_is_larger_stays(source: Path, tmp_path: Path) -> None:
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 10**30}))
    text = path.read_bytes()
    folder = ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
    assert (folder / "tokenizer_config.json").read_bytes() == text


def test_links_share_the_weights_and_nothing_else(source: Path, tmp_path: Path) -> None:
    folder = ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4, link=True)
    assert (folder / "model.safetensors").samefile(source / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert not (folder / name).samefile(source / name)
    before = contents(source)
    model = ropescale.load(folder)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(folder)
    assert contents(source) == before


def test_a_copy_shares_nothing(source: Path, tmp_path: Path) -> None:
    folder = ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
    assert all(path.stat().st_nlink == 1 for path in folder.iterdir())


def test_links_of_a_hub_cache_are_followed(source: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in source.iterdir():
        (snapshot / path.name).symlink_to(path)
    folder = ropescale.rescale_checkpoint(snapshot, tmp_path / "rescaled", factor=4)
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert contents(folder).keys() == contents(source).keys()


def test_an_empty_folder_is_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        ropescale.rescale_checkpoint(source, tmp_path / name, factor=4)
    assert contents(tmp_path / "empty") == contents(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new", "source"]


def test_folders_come_along_and_hidden_ones_stay(source: Path, tmp_path: Path) -> None:
    (source / "more").mkdir()
    (source / "more" / "note.txt").write_text("kept")
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("left")
    folder = ropescale.rescale_checkpoint(source, tmp_path / "a" / "b" / "rescaled", factor=4)
    assert (folder / "more" / "note.txt").read_text() == "kept"
    assert not (folder / ".git").exists()


@pytest.mark.parametrize("existing", ["replace", "compose"])
def test_a_rescaled_checkpoint_is_rescaled_again_as_asked(existing: str, source: Path, tmp_path: Path) -> None:
    once = ropescale.rescale_checkpoint(source, tmp_path / "once", "yarn", factor=4)
    with pytest.raises(ropescale.RopescaleError, match="already scaled, got a ropescale record"):
        ropescale.rescale_checkpoint(once, tmp_path / "twice", "linear", factor=2)
    assert not (tmp_path / "twice").exists()
    twice = ropescale.rescale_checkpoint(once, tmp_path / "twice", "linear", factor=2, existing=existing)
    length = {"replace": 128, "compose": 512}[existing]
    assert json.loads((twice / "config.json").read_text())["max_position_embeddings"] == length
    assert ropescale.diagnose(twice) == []
    again = AutoModelForCausalLM.from_pretrained(once)
    expected = logits(ropescale.patch(again, "linear", factor=2, existing=existing))
    assert torch.equal(logits(ropescale.load(twice)), expected)


def begun(source: Path, destination: Path) -> multiprocessing.process.BaseProcess:
    """A process that has begun to copy a checkpoint, slowly."""

    def slowly(start: Path, end: Path, advance: Callable[[int], None]) -> dict[str, int]:
        for count in range(0, start.stat().st_size, 256):
            with start.open("rb") as read, end.open("ab") as written:
                read.seek(count)
                written.write(read.read(256))
            time.sleep(0.002)
        return {}

    def work() -> None:
        rescaling.bring = slowly
        ropescale.rescale_checkpoint(source, destination, factor=4)

    job = multiprocessing.get_context("fork").Process(target=work)
    job.start()
    while job.is_alive() and not destination.with_name(f".{destination.name}.partial").exists():
        time.sleep(0.005)
    return job


def test_a_kill_at_any_moment_leaves_nothing_that_loads(source: Path, tmp_path: Path) -> None:
    """Killed again and again, later each time; then the same call succeeds."""
    before = contents(source)
    destination, partial = tmp_path / "rescaled", tmp_path / ".rescaled.partial"
    for delay in (0.0, 0.05, 0.2, 0.4):
        job = begun(source, destination)
        time.sleep(delay)
        assert job.is_alive(), "the copy was over before it could be killed"
        job.kill()
        job.join()
        assert not destination.exists()
        for folder in (destination, partial):
            with pytest.raises(CheckpointError, match="must be a folder with a Transformers checkpoint"):
                ropescale.load(folder)
        assert contents(source) == before
    ropescale.rescale_checkpoint(source, destination, factor=4)
    assert ropescale.record(ropescale.load(destination)).method == "yarn"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rescaled", "source"]


def test_two_runs_for_one_place_are_kept_apart(source: Path, tmp_path: Path) -> None:
    job = begun(source, tmp_path / "rescaled")
    try:
        with pytest.raises(CheckpointError, match="which another process is writing; wait for it"):
            ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
    finally:
        job.kill()
        job.join()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A disk on which no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with files_up_to(20_000), pytest.raises(CheckpointError, match="must be a place with room that can be written"):
        ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "rescaled"
    knobs = '{"beta_fast": 16}'
    arguments = ["rescale", str(source), str(folder), "--target-length", "200", "--knobs", knobs, "--link"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"checkpoint: {folder}",
        "written from the config, no model was read: ropescale.load proves the patch on the model",
        f"next: ropescale eval {folder} --methods none --quick",
    ]
    record = ropescale.record(ropescale.load(folder))
    assert (record.target_length, record.knobs["beta_fast"]) == (200, 16.0)
    assert cli.main(arguments) == 2
    assert "DST: must be new, or an empty folder, got " in capsys.readouterr().err


def test_no_weight_is_read(source: Path, tmp_path: Path) -> None:
    """Damaged values come along as they are: whoever loads them will be told."""
    weights = (source / "model.safetensors").read_bytes()
    damaged = weights[:-1000] + b"\xff" * 1000
    (source / "model.safetensors").write_bytes(damaged)
    folder = ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
    assert (folder / "model.safetensors").read_bytes() == damaged


@pytest.mark.parametrize("kept", [0, 20, 5000, -1000])
def test_weights_that_end_early_are_refused(kept: int, source: Path, tmp_path: Path) -> None:
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:kept])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: must be a whole file of weights, got one of [\d,]+ "
    ):
        ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
    assert not (tmp_path / "rescaled").exists()


def test_pickled_weights_that_end_early_are_refused(source: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, source / "pytorch_model.bin")
    content = (source / "pytorch_model.bin").read_bytes()
    (source / "pytorch_model.bin").write_bytes(content[:-500])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: must be a whole file of weights, got one of "):
        ropescale.rescale_checkpoint(source, tmp_path / "rescaled", factor=4)
