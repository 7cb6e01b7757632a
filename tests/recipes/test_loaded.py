"""How a recipe has its model loaded, and what cannot be trained as it lies."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from families import config_of, family
from transformers import AutoModelForCausalLM, TrainingArguments

from ropescale.errors import InvalidArgumentError
from ropescale.loading import Loading
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.tuning import loading, require_held


def asked(name: str, *options: str) -> Loading:
    return loading(read_recipe(name, ["--model", "tiny", "--factor", "2", "--use_cpu", "true", *options]))


def test_what_a_recipe_says_is_what_is_loaded() -> None:
    assert asked("lora") == Loading(dtype="float32", device="cpu")
    assert asked("lora", "--dtype", "bfloat16", "--attn", "eager", "--revision", "v2") == Loading(
        dtype="bfloat16", device="cpu", attention="eager", revision="v2"
    )
    assert asked("lora", "--device-map", "auto") == Loading(dtype="float32", device_map="auto")
    assert asked("lora", "--tuning", "qlora").quantization == "bnb-4bit"
    assert asked("lora", "--tuning", "qlora", "--quantization", "bnb-8bit").quantization == "bnb-8bit"


def test_qlora_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    with pytest.raises(InvalidArgumentError) as caught:
        asked("lora", "--tuning", "qlora")
    assert str(caught.value) == (
        "tuning: qlora needs bitsandbytes, got no package of that name; pip install 'ropescale[qlora]', or use lora"
    )


def test_quantised_weights_are_trained_beside_alone() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        asked("full", "--quantization", "bnb-8bit")
    assert str(caught.value) == (
        "quantization: belongs to tuning qlora, got 'bnb-8bit' with 'full'; use tuning qlora, or leave it out"
    )


def test_a_device_map_is_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: 2))
    with pytest.raises(InvalidArgumentError) as caught:
        asked("lora", "--device-map", "auto")
    assert str(caught.value) == (
        "device_map: is of one process, got 'auto' in a launch of 2; leave it out, and let the launch share the "
        "weights"
    )


def test_weights_that_are_not_held_are_not_trained() -> None:
    require_held(family("llama"), None)
    with torch.device("meta"):
        away = AutoModelForCausalLM.from_config(config_of("llama"))
    with pytest.raises(InvalidArgumentError, match=r"got 'auto', which leaves model.embed_tokens.weight and \d+ more"):
        require_held(away, "auto")
