"""Indices of weights that somebody else made name files of their folder alone."""

import json
from pathlib import Path

import pytest
import torch
from attacks import READING, untouched
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import ropescale
from ropescale.adapters import save_adapter
from ropescale.errors import CheckpointError
from ropescale.shards import read_index


@pytest.fixture(autouse=True)
def adapter(request: pytest.FixtureRequest) -> None:
    """An adapter for `merge`, where a test has a folder of its own."""
    if "with_code" in request.fixturenames and "tmp_path" in request.fixturenames:
        model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        save_adapter(adapted, request.getfixturevalue("tmp_path") / "adapter")


# Indices of weights

OUTSIDE = [
    "../mine/diary.txt",
    "/etc/passwd",
    "a/../../mine/diary.txt",
    "..",
    "C:\\x",
    "\\x",
    "a\\..\\..\\x",
    "",
    ".",
    "a\0b",
]


@pytest.mark.parametrize("place", [*OUTSIDE, 5, None, ["a"], {"a": "b"}])
def test_an_index_names_files_of_its_folder_alone(place: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.bin", "b": place}}))
    with pytest.raises(CheckpointError, match=r"weights must be in files of its own folder, got .* for 'b'; fetch"):
        read_index(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 5}'])
def test_a_damaged_index_is_worded(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"a\.index\.json: must "):
        read_index(tmp_path / "a.index.json")


@pytest.mark.parametrize("place", ["a.safetensors", "sub/a.safetensors", "./a..b.safetensors"])
def test_an_index_may_name_what_is_below_its_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    assert read_index(tmp_path / "a.index.json") == {"a": place}


@pytest.mark.parametrize("verb", READING)
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_what_lies_outside_is_not_read_and_not_copied(verb: str, absolute: bool, theirs: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    save_file({"secret": torch.ones(3)}, private / "secret.safetensors")
    weights = load_file(theirs / "model.safetensors")
    (theirs / "model.safetensors").unlink()
    save_file(weights, theirs / "a.safetensors", metadata={"format": "pt"})
    place = str(private / "secret.safetensors") if absolute else "../private/secret.safetensors"
    places = {**dict.fromkeys(weights, "a.safetensors"), "secret": place}
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with untouched(private), pytest.raises(CheckpointError, match="weights must be in files of its own folder"):
        READING[verb](theirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
