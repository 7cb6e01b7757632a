"""Where an export goes, and sources that are broken: written whole or not at all."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from exports import (
    IGNORED,
    checkpoint,
    often,
)
from safetensors.torch import load_file, save_file

from ropescale.errors import (
    CheckpointError,
    InvalidArgumentError,
)
from ropescale.export import export

pytestmark = IGNORED


@pytest.mark.parametrize("to", ["gguf", "transformers"])
def test_a_destination_that_exists_is_refused(to: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("mine")
    with pytest.raises(
        InvalidArgumentError, match=r"^destination: must be new, or an empty folder, got .*model\.gguf'"
    ):
        export("tiny", path, to=to, method="none")
    assert path.read_text() == "mine"
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    (folder / "note").write_text("mine")
    with pytest.raises(
        InvalidArgumentError, match=r"^destination: must be new, or an empty folder, got .*folder\.gguf"
    ):
        export("tiny", folder, to=to, method="none")
    assert [path.name for path in folder.iterdir()] == ["note"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    export("tiny", tmp_path, to="transformers", method="yarn", factor=4)
    assert (tmp_path / "config.json").is_file()


def test_a_destination_within_the_source_is_refused(llama: Path) -> None:
    before = sorted(llama.rglob("*"))
    for path in (llama / "out", llama / "a" / "model.gguf"):
        with pytest.raises(InvalidArgumentError, match=r"^destination: must lie outside the source, got "):
            export(llama, path, to="gguf" if path.suffix else "vllm", method="none")
    assert sorted(llama.rglob("*")) == before


@pytest.mark.parametrize("to", ["gguf", "vllm"])
@pytest.mark.parametrize("parent", ["/proc/ropescale", "file"])
def test_a_destination_that_cannot_be_written_is_refused(parent: str, to: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"^destination: must be a place with room that can be written, got "):
        export("tiny", tmp_path / parent / "model.gguf", to=to, method="none")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("to", ["gguf", "vllm"])
def test_a_disk_that_fills_up_leaves_nothing(to: str, llama: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # as on a disk that is full after 1 MB
    try:
        with pytest.raises(
            CheckpointError, match=r"^destination: must be a place with room that can be written, got "
        ):
            export(llama, tmp_path / "model.gguf", to=to, method="yarn", factor=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from ropescale.export import export
from ropescale.export.gguf import writing
import shutil
real = {"copy": shutil.copyfile, "encoded": writing.encoded}
def slow(name):
    def call(*arguments):
        print("writing", flush=True)
        found = real[name](*arguments)
        time.sleep(0.5)
        return found
    return call
shutil.copyfile, writing.encoded = slow("copy"), slow("encoded")
export(sys.argv[1], sys.argv[2], to=sys.argv[3], method="yarn", factor=4)
"""


@pytest.mark.parametrize("to", often(["gguf", "vllm"], "vllm"))
def test_a_killed_export_leaves_nothing_that_an_engine_would_load(to: str, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    command = [sys.executable, "-c", SLOW, str(llama), str(path), to]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    left = list(tmp_path.iterdir())
    assert not path.exists()
    assert {one.name for one in left} <= {".model.gguf.lock", ".model.gguf.partial"}
    assert not list(tmp_path.rglob("config.json"))
    export(llama, path, to=to, method="yarn", factor=4)
    assert list(tmp_path.iterdir()) == [path]


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    weights = (source / "model.safetensors").read_bytes()
    config = (source / "config.json").read_text()
    out = tmp_path / "out.gguf"
    for to in ("vllm", "gguf"):
        (source / "model.safetensors").write_bytes(weights[:-1000])
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors: must be a whole safetensors file|weights that Tra"
        ):
            export(source, out, to=to, method="none")
        (source / "model.safetensors").unlink()
        with pytest.raises(
            CheckpointError, match=r"source: must hold weights that Transformers can load in .* got OSError"
        ):
            export(source, out, to=to, method="none")
        (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "missing.safetensors"}}')
        with pytest.raises(
            CheckpointError, match=r"missing\.safetensors: must be a whole|weights that Transformers can"
        ):
            export(source, out, to=to, method="none")
        (source / "model.safetensors.index.json").unlink()
        (source / "model.safetensors").write_bytes(weights)
        for text in ("{", config.replace('"llama"', '"llamma"')):
            (source / "config.json").write_text(text)
            with pytest.raises(
                CheckpointError, match=r"source(/config\.json)?: must (be a JSON file|have a config\.json)"
            ):
                export(source, out, to=to, method="none")
        (source / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=r"must be a folder with a Transformers checkpoint, or a hub id"):
            export(tmp_path / "nowhere", out, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_that_lacks_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"the weights must be complete, got none for 'model\.layers\.1\.mlp\.up_p"
    ):
        export(source, tmp_path / "out.gguf", to="gguf", method="yarn", factor=4)
