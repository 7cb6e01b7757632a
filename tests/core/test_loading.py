"""How models are loaded: spread over devices, quantised, of a revision; what cannot be is refused by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from families import family, logits

import ropescale
from ropescale import checkpoints
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.loading import Loading
from ropescale.trust import trusting

KINDS = {"a fixed method": "yarn", "one of the length": "dynamic_yarn", "one that acts in attention": "self_extend"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    family("llama").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def spread() -> str:
    """Embeddings, the head and every other layer on the disk."""
    places = {"model.norm": "cpu", "model.rotary_emb": "cpu", "model.embed_tokens": "disk", "lm_head": "disk"}
    return json.dumps({**places, "model.layers.0": "disk", "model.layers.1": "cpu"})


@pytest.mark.parametrize("method", KINDS.values(), ids=[*KINDS])
def test_a_model_that_is_spread_over_memory_and_disk_reads_as_a_whole_one(
    method: str, saved: Path, spread: str
) -> None:
    whole, model = family("llama"), Loading(device_map=spread).model(str(saved))
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert {name.split(".")[1] for name in away} == {"embed_tokens", "layers", "weight"}
    before = logits(whole)
    assert torch.equal(logits(model), before)
    expected = logits(ropescale.patch(whole, method, factor=4))
    assert not torch.equal(expected, before)
    assert torch.equal(logits(ropescale.patch(model, method, factor=4)), expected)
    assert torch.equal(logits(ropescale.unpatch(model)), before)


@pytest.mark.parametrize("method", KINDS.values(), ids=[*KINDS])
def test_accelerate_may_choose_what_lies_on_the_disk(method: str, saved: Path, tmp_path: Path) -> None:
    size = sum(parameter.numel() * 4 for parameter in family("llama").parameters())
    room = {"max_memory": {"cpu": size // 2}, "offload_folder": str(tmp_path / "away")}
    model = ropescale.load(saved, device_map="auto", **room)
    assert {*model.hf_device_map.values()} == {"cpu", "disk"}
    expected = logits(ropescale.patch(family("llama"), method, factor=4))
    assert torch.equal(logits(ropescale.patch(model, method, factor=4)), expected)


def test_8_bit_weights_are_patched_and_undone() -> None:
    model = Loading(quantization="bnb-8bit").model("tiny")
    ids = torch.arange(1, 200)[None]
    with torch.no_grad():
        before = model(ids).logits
        whole = ropescale.load("tiny")(ids).logits
        assert 0 < (before - whole).abs().max() < 0.5
        patched = ropescale.patch(model, "yarn", factor=4)(ids).logits
        other = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)(ids).logits
        assert (patched - other).abs().max() < 0.5 < (other - whole).abs().max()
        assert torch.equal(ropescale.unpatch(model)(ids).logits, before)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"dtype": "int8"},
            "dtype: must be one of auto, bfloat16, float16, float32, got 'int8'; leave it out for auto",
        ),
        (
            {"device": "cpu", "device_map": "auto"},
            "device: is of a model on one device, got 'cpu' with device_map 'auto'; leave one of the two out",
        ),
        (
            {"device_map": "everywhere"},
            "device_map: must be one of auto, balanced, balanced_low_0, sequential, or a JSON object of modules and "
            "their devices, got 'everywhere'; leave it out for one device",
        ),
        (
            {"quantization": "int3"},
            "quantization: must be one of bnb-4bit, bnb-8bit, torchao-int8, got 'int3'; leave it out for weights as "
            "they are",
        ),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Loading(**given)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("quantization", "package", "extra"),
    [("bnb-8bit", "bitsandbytes", "qlora"), ("torchao-int8", "torchao", "torchao")],
)
def test_a_package_that_is_missing_is_named_with_its_command(
    quantization: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(InvalidArgumentError) as caught:
        Loading(quantization=quantization)
    assert str(caught.value) == (
        f"quantization: {quantization} needs {package}, got no package of that name; pip install "
        f"'ropescale[{extra}]', or leave it out"
    )


def test_attention_that_is_not_here_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="attention: must be a way of computing attention that this model"):
        Loading(attention="flash_attention_2").model("tiny")
    assert Loading(attention="eager").model("tiny").config._attn_implementation == "eager"
    assert Loading(attention="owner/kernel").attention == "owner/kernel"
    said = r"^attention: must be one of eager, .*flex_attention, sdpa, got '{}'; leave it out for the model's own$"
    for name in ("flash", "", "ropescale"):  # the last is what patches attend by, with what they set
        with pytest.raises(InvalidArgumentError, match=said.format(name)):
            Loading(attention=name)
    with trusting(True):  # code of a checkpoint may have ways of its own
        assert Loading(attention="its_own").attention == "its_own"


def test_all_of_a_checkpoint_is_of_one_revision(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(name: str, *, revision: str, **_: Any) -> str:
        if revision == "none":
            raise huggingface_hub.errors.HfHubHTTPError("404: no such revision")
        asked.append((name, revision))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    loading = Loading(revision="v2")
    model = loading.model("owner/name")
    assert torch.equal(logits(model), logits(family("llama")))
    assert model.name_or_path == "owner/name"
    assert loading.path("owner/name") == str(saved)
    assert asked == [("owner/name", "v2")]
    assert loading.stated == {"revision": "v2"}
    with pytest.raises(
        CheckpointError, match="owner/name: must be a hub id that has this revision and can be reached"
    ):
        checkpoints.resolve("owner/name", revision="none")
    for name in ("tiny", str(saved)):
        with pytest.raises(InvalidArgumentError, match=r"revision: is of a hub id, got 'v2' with .*; leave"):
            loading.path(name)
