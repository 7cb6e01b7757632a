"""Wrong calls, what they say, and that they change nothing: what the tests of messages share."""

import copy
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import ropescale
from ropescale import Geometry, RopescaleError, get_method, list_methods
from ropescale.methods import FixedMethod

METHODS = ", ".join(list_methods())


AT_LEAST_ONE = "(1 leaves the model as it is)"


DEFAULTS = "`ropescale methods` lists the knobs with their defaults"


GEOMETRY = Geometry(rotary_dim=64, theta=10000.0, original_length=2048)


@dataclass(frozen=True)
class Wrong:
    """A wrong call, the error that it meets and its text in full."""

    name: str
    call: Callable[..., Any]
    error: type[RopescaleError]
    text: str


def parametrized(wrong: list[Wrong]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("wrong", wrong, ids=lambda case: case.name)


def weights(model: nn.Module) -> dict[str, str]:
    """A hash of every tensor that would be saved."""
    return {
        key: ""
        if value.is_meta
        else hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for key, value in model.state_dict().items()
    }


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Holds that the block changes nothing about the model, and that nothing in it warns."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    config = getattr(model, "config", None)
    # first, because what follows compares a length-dependent module as its last call left it
    logits = None if config is None or on_meta else families.logits(model)
    state = weights(model)
    facts = config and copy.deepcopy(config.to_dict())
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert config is None or config.to_dict() == facts
    assert weights(model) == state
    for name, buffer in model.named_buffers():
        original, values = buffers.pop(name)
        assert buffer is original
        assert on_meta or torch.equal(buffer, values)
    assert not buffers
    assert logits is None or torch.equal(families.logits(model), logits)


def refused(wrong: Wrong, *arguments: Any) -> None:
    with pytest.raises(RopescaleError) as refusal:
        wrong.call(*arguments)
    assert str(refusal.value) == wrong.text
    assert type(refusal.value) is wrong.error


def patching(*arguments: Any, **keywords: Any) -> Callable[[nn.Module], Any]:
    """A call of patch that lacks its model."""
    return lambda model: ropescale.patch(model, *arguments, **keywords)


def entering(*arguments: Any, **keywords: Any) -> Callable[[nn.Module], Any]:
    """A call of patched that lacks its model."""

    def call(model: nn.Module) -> None:
        with ropescale.patched(model, *arguments, **keywords):
            raise AssertionError("the block of a refused patch must not run")

    return call


def made(name: str, **knobs: Any) -> Callable[[], FixedMethod]:
    return lambda: get_method(name)(**{"factor": 4, **knobs})


def geometry(**facts: Any) -> Callable[[], Geometry]:
    return lambda: Geometry(**{"rotary_dim": 4, "theta": 10000.0, "original_length": 2048, **facts})


def edited(**fields: Any) -> Callable[[], PreTrainedModel]:
    """A model whose config was edited after it was loaded."""

    def build() -> PreTrainedModel:
        model = families.family("llama")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rope_scaling is deprecated, and still assigned in the wild
            for field, value in fields.items():
                setattr(model.config, field, copy.deepcopy(value))
        return model

    return build


def default(**changes: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **changes}


CHOICES = (
    'pass existing="replace" to start again from theta and the original length, or existing="compose" to scale what '
    "it has now"
)


# On disk


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damaged(saved: Path, folder: Path, damage: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the saved model whose config was edited by hand."""
    copied = folder / "damaged"
    shutil.copytree(saved, copied)
    config = json.loads((copied / "config.json").read_text())
    damage(config)
    (copied / "config.json").write_text(json.dumps(config))
    return copied


# Calls that meet some other part first, and still get a worded error


def worded(error: RopescaleError) -> None:
    """The form of every text: what, rule, value; what to do."""
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    assert "; " in text


def in_the_one_form(texts: list[str]) -> None:
    """Sentences of a table, as they are written there."""
    for text in texts:
        worded(RopescaleError(text))
        assert ", got " in text or text.startswith("unknown method ") or ": unknown knob " in text
        assert not re.match(r"[A-Z](?!ATH:)", text)
