"""Rotary tables of the old length among the weights: whatever writes a checkpoint leaves out them and nothing else."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import TOKENIZER
from families import NAMES, family, logits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.errors import CheckpointError
from ropescale.export import export
from ropescale.shards import bring, index_without, is_table, tables_in

WORDS = r"2 rotary tables among the weights, .*rotary_emb\.inv_freq.* first, are those of the old length"
TABLE = torch.arange(8, dtype=torch.float32)
NAMED = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": TABLE + layer for layer in range(2)}


def weights_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.fixture(params=["one file", "shards"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint as Llama's of 2023: with a table in every layer, in one file or several."""
    folder = tmp_path / "old"
    family("llama").save_pretrained(folder, max_shard_size="10GB" if request.param == "one file" else "60KB")
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 2) == (request.param == "shards")
    last = files[-1]
    save_file({**load_file(last), **NAMED}, last, metadata={"format": "pt", "by": "hand"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        values = json.loads(index.read_text())
        values["weight_map"] |= dict.fromkeys(NAMED, last.name)
        values["metadata"]["total_size"] += 64
        index.write_text(json.dumps(values))
    return folder


def require_clean(folder: Path, old: Path) -> None:
    """The same weights bit for bit, the tables gone from files and index, and the doctor content."""
    before, after = weights_of(old), weights_of(folder)
    assert before.keys() - after.keys() == NAMED.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened, safe_open(old / file.name, "pt") as source:
            assert opened.metadata() == source.metadata()
            assert list(opened.keys()) == [name for name in source.keys() if name not in NAMED]  # noqa: SIM118
    index = folder / "model.safetensors.index.json"
    assert index.is_file() == (old / index.name).is_file()
    if index.is_file():
        values = json.loads(index.read_text())
        assert values["weight_map"].keys() == after.keys()
        assert values["metadata"]["total_size"] == sum(one.numel() * one.element_size() for one in after.values())
    assert ropescale.diagnose(folder) == []


@pytest.mark.parametrize("link", [False, True])
def test_rescale_leaves_them_out(link: bool, old: Path, tmp_path: Path) -> None:
    kept = {path.name: path.read_bytes() for path in old.iterdir()}
    with pytest.warns(UserWarning, match=WORDS):
        folder = ropescale.rescale_checkpoint(old, tmp_path / "new", "yarn", factor=4, link=link)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == kept
    require_clean(folder, old)
    for file in folder.glob("*.safetensors"):
        assert os.path.samefile(file, old / file.name) == (link and not tables_in(old / file.name))
    expected = logits(ropescale.patch(AutoModelForCausalLM.from_pretrained(old), "yarn", factor=4))
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert torch.equal(logits(model), expected)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


@pytest.mark.parametrize("to", ["transformers", "vllm", "sglang", "mlx"])
def test_export_leaves_them_out(to: str, old: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=WORDS):
        export(old, tmp_path / "new", to=to, method="yarn", factor=4)
    require_clean(tmp_path / "new", old)


def test_the_command_line_says_so(old: Path, tmp_path: Path) -> None:
    for file in TOKENIZER:
        shutil.copy(Path(resolve("tiny"), file), old / file)
    with pytest.warns(UserWarning, match=WORDS):
        assert cli.main(["rescale", str(old), str(tmp_path / "new"), "--factor", "4"]) == 0
    assert cli.main(["doctor", str(tmp_path / "new")]) == 0


def test_a_live_model_is_saved_without_them(old: Path, tmp_path: Path) -> None:
    ropescale.patch(ropescale.load(old), "yarn", factor=4).save_pretrained(tmp_path / "new")
    assert not [name for name in weights_of(tmp_path / "new") if is_table(name)]
    assert ropescale.diagnose(tmp_path / "new") == []


def test_a_checkpoint_without_them_is_copied_byte_for_byte(tmp_path: Path) -> None:
    family("llama").save_pretrained(tmp_path / "plain")
    with warnings.catch_warnings(action="error"):
        folder = ropescale.rescale_checkpoint(tmp_path / "plain", tmp_path / "new", "yarn", factor=4)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()


def test_pickled_weights_are_cleaned_too(tmp_path: Path) -> None:
    model = family("llama")
    model.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    state = {**model.state_dict(), **NAMED}
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, tmp_path / "old" / file)
    places = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 10**6}, "weight_map": places}
    (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.warns(UserWarning, match=WORDS):
        folder = ropescale.rescale_checkpoint(tmp_path / "old", tmp_path / "new", "yarn", factor=4)
    after: dict[str, Tensor] = {}
    for file in shards:
        after |= torch.load(folder / file, weights_only=True)
    assert after.keys() == model.state_dict().keys()
    assert all(torch.equal(after[name], state[name]) for name in after)
    written = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    assert written == index_without(index, dict.fromkeys(NAMED, 32))
    assert written["metadata"]["total_size"] == 10**6 - 64
    assert torch.equal(logits(ropescale.load(folder)), logits(ropescale.patch(model, "yarn", factor=4)))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("gpt_neox.layers.3.attention.rotary_emb.inv_freq", True),
        ("transformer.h.0.self_attention.maybe_rotary.inv_freq", True),
        ("model.rotary_emb.full_attention_inv_freq", True),
        ("model.rotary_emb.original_inv_freq", True),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", True),
        ("rotary_emb.sin_cached", True),
        ("visual.rotary_pos_emb.inv_freq", False),
        ("model.vision_tower.patch_positional_embedding.inv_freq", False),
        ("audio_tower.rotary_emb.inv_freq", False),
        ("model.layers.0.self_attn.q_proj.weight", False),
        ("model.inv_freq_proj.weight", False),
    ],
)
def test_what_is_a_table_of_the_text(name: str, table: bool) -> None:
    assert is_table(name) == table


@pytest.mark.parametrize("name", NAMES)
def test_no_family_saves_any(name: str) -> None:
    """So nothing that a model has to be given is left out."""
    assert not [entry for entry in family(name).state_dict() if is_table(entry)]


def broken_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights at all",
        bytes(8),
        b"\xff" * 64,
        broken_header(b"[1]"),
        broken_header(b'{"a.inv_freq": 3}'),
        broken_header(b'{"a.inv_freq": {"data_offsets": [4, 1]}}'),
        broken_header(b"\xff\xfe{}"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_is_no_file_of_weights_is_copied_as_it_is(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    assert bring(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}") == {}
    assert (tmp_path / f"b{suffix}").read_bytes() == content


def test_the_bar_is_told_of_every_byte(tmp_path: Path) -> None:
    told: list[int] = []
    report: Callable[[int], Any] = told.append
    save_file({**NAMED, "a": torch.ones(1000)}, tmp_path / "a.safetensors")
    assert bring(tmp_path / "a.safetensors", tmp_path / "b.safetensors", report) == dict.fromkeys(NAMED, 32)
    assert sum(told) == 4000


def laid_out(folder: Path, places: dict[str, list[str]], weights: dict[str, Tensor]) -> Path:
    """A checkpoint whose weights lie in these files, with the index that says so."""
    for file, names in places.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weights[name].clone() for name in names}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, names in places.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def without_one_file(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    family("llama").save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, weights


@pytest.mark.parametrize("to", ["transformers", "vllm"])
@pytest.mark.parametrize(
    "files",
    [["model-00001-of-00001.safetensors"], ["x/m.safetensors", "y/m.safetensors"], ["a.safetensors", "b.safetensors"]],
    ids=["one shard", "in folders of their own", "two shards"],
)
def test_whatever_files_an_index_names_are_exported_with_it(files: list[str], to: str, tmp_path: Path) -> None:
    folder, weights = without_one_file(tmp_path / "source")
    names = sorted(weights)
    laid_out(folder, {file: names[place :: len(files)] for place, file in enumerate(files)}, weights)
    export(folder, tmp_path / "out", to=to, method="yarn", factor=4)
    assert (
        sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.safetensors")) == files
    )
    expected = logits(ropescale.patch(ropescale.load(folder), "yarn", factor=4))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda index: index.pop("model.norm.weight"),
            r"must name the file of every tensor, got 'model\.norm\.weight'",
        ),
        (
            lambda index: index.update({"model.more.weight": "a.safetensors"}),
            r"every tensor, got 'model\.more\.weight' no",
        ),
        (lambda index: index.update({"model.norm.weight": "b.safetensors"}), r"got 'model\.norm\.weight' elsewhere"),
        (
            lambda index: index.update({"model.norm.weight": "../b.safetensors"}),
            r"weights must be in files of its own folder, got ",
        ),
        (
            lambda index: index.update({"model.norm.weight": "/b.safetensors"}),
            r"weights must be in files of its own folder, got ",
        ),
        (lambda index: index.update({"model.norm.weight": "c.safetensors"}), r"c\.safetensors: must be a whole safe"),
        (lambda index: index.update({"model.norm.weight": 3}), r"weights must be in files of its own folder, got 3"),
    ],
)
def test_an_index_that_is_not_that_of_its_files_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    folder, weights = without_one_file(tmp_path / "source")
    names = [name for name in sorted(weights) if name != "model.norm.weight"]
    laid_out(folder, {"a.safetensors": ["model.norm.weight", *names[::2]], "b.safetensors": names[1::2]}, weights)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=said):
        export(folder, tmp_path / "out", to="vllm", method="yarn", factor=4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_are_missing_are_refused(lost: str, tmp_path: Path) -> None:
    family("llama").save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    save_file({name: one for name, one in weights.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"the weights must be complete, got none for '{re.escape(lost)}'"):
        export(tmp_path / "source", tmp_path / "out", to="vllm", method="yarn", factor=4)
    save_file({**weights, lost: weights[lost][:-1].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"source: must hold weights that Transformers can load.*, got RuntimeError"
    ):
        export(tmp_path / "source", tmp_path / "out", to="vllm", method="yarn", factor=4)
    assert not (tmp_path / "out").exists()
