"""Decoders without a head, as embedding models are used: pooled, padded, called past hooks, held by others."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of, family
from heads import built
from late import (
    apart,
    no_grad,  # noqa: F401  # a fixture of every test here
    prompts,
)
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import ropescale
from ropescale import cli
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError, UnsupportedModelError

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fixed": ("yarn", {"factor": 2}),
    "fixed with log-n": ("yarn", {"factor": 2, "log_n": True}),
    "by length": ("dynamic_yarn", {}),
    "late": ("self_extend", {"group_size": 4, "window": 10}),
}
FAMILIES = ("llama", "qwen3", "phi3")
GRID = [(name, case) for name in FAMILIES for case in METHODS]
often = pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, marks=() if turn % len(FAMILIES) == 0 else pytest.mark.slow)
        for turn, (name, case) in enumerate(GRID)
    ],
)


def test_what_comes_next_is_a_verb_that_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = built("llama", "decoder")
    model.save_pretrained("bare")
    AutoModelForCausalLM.from_config(model.config).save_pretrained("whole")
    for made in ("bare", "whole"):
        for words in (
            ["rescale", made, f"{made}-longer", "--factor", "2"],
            ["plot", made, "--factor", "2", "--output", "a.svg"],
            ["memory", made, "--length", "512"],
            ["memory", f"{made}-longer", "--length", "512"],
        ):
            assert cli.main(words) == 0
            after = shlex.split(capsys.readouterr().out.rpartition("next: ropescale ")[2])
            checkpoint = words[2] if words[0] == "rescale" else words[1]
            assert after[:2] == (["inspect", checkpoint] if made == "bare" else ["eval", checkpoint]), words
            if made == "bare":
                assert cli.main(after) == 0
                capsys.readouterr()


class Encoder(nn.Module):
    """What stands around a decoder in sentence-transformers: it calls `forward` by itself, and means over tokens."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.auto_model = decoder

    @property
    def config(self) -> Any:  # which it answers for its decoder
        return self.auto_model.config

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.auto_model.forward(input_ids=ids, attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Pipeline(nn.Sequential):
    """The encoder, and what normalises its vectors."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return nn.functional.normalize(self[0](ids, mask), dim=-1)


def padded(ids: Tensor, at: str, by: int) -> tuple[Tensor, Tensor]:
    """A whole row, and one whose first tokens, or last, are padding."""
    mask = torch.ones_like(ids).repeat(2, 1)
    mask[1, slice(0, by) if at == "left" else slice(ids.shape[1] - by, None)] = 0
    return torch.cat((ids, torch.where(mask[1:] > 0, ids.roll(5), 0))), mask


@often
def test_vectors_of_a_batch_are_those_of_its_texts_alone(name: str, case: str, tmp_path: Path) -> None:
    method, knobs = METHODS[case]
    model = built(name, "decoder")
    pipeline, ids = Pipeline(Encoder(model), nn.Identity()), prompts(length=150)
    for at in ("left", "right"):
        rows, mask = padded(ids, at, 60)
        before = pipeline(rows, mask)
        with ropescale.patched(model, method, **knobs):
            found = pipeline(rows, mask)
            of_text = rows[1:][:, mask[1] > 0]
            assert apart(found[1:], pipeline(of_text, torch.ones_like(of_text))) < 1e-4
            assert apart(found[:1], pipeline(ids, torch.ones_like(ids))) < 1e-4
            assert apart(found, before) > 1e-3
            assert torch.equal(found, Pipeline(Encoder(model))(rows, mask))
        assert torch.equal(pipeline(rows, mask), before)


@pytest.mark.parametrize("case", METHODS)
def test_what_holds_one_model_is_taken_for_it(case: str) -> None:
    method, knobs = METHODS[case]
    model = built("llama", "decoder")
    pipeline, (ids, mask) = Pipeline(Encoder(model), nn.Identity()), padded(prompts(length=150), "left", 60)
    with ropescale.patched(model, method, **knobs):
        expected = pipeline(ids, mask)
        signature = inspect.signature(model.forward)
    assert ropescale.patch(pipeline, method, **knobs) is pipeline
    assert ropescale.record(pipeline).method == ropescale.record(model).method == method  # type: ignore[union-attr]
    assert torch.equal(pipeline(ids, mask), expected)
    assert inspect.signature(model.forward) == signature
    again = copy.deepcopy(pipeline)
    ropescale.unpatch(pipeline)
    assert "forward" not in vars(model)
    assert inspect.signature(model.forward) == signature
    assert torch.equal(again(ids, mask), expected)
    assert torch.equal(pickle.loads(pickle.dumps(again))(ids, mask), expected)
    with pytest.raises(InvalidArgumentError, match="must be a Transformers model with a config, got ModuleList"):
        ropescale.patch(nn.ModuleList([model, again]), method, **knobs)


def test_what_stands_around_forward_meanwhile_stays() -> None:
    model, ids = built("llama", "decoder"), prompts(length=150)
    before = model(ids)[0]
    ropescale.patch(model, "dynamic_yarn")
    expected, guided = model(ids)[0], model.forward
    calls = []

    @functools.wraps(guided)
    def around(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return guided(*args, **kwargs)

    model.forward = around  # type: ignore[method-assign]
    assert torch.equal(model(ids)[0], expected)
    assert torch.equal(model.forward(ids)[0], expected)
    ropescale.unpatch(model)
    assert model.forward is around
    assert torch.equal(model.forward(ids)[0], before)
    ropescale.patch(model, "dynamic_yarn")
    assert torch.equal(model.forward(ids)[0], expected)
    ropescale.unpatch(model)
    assert model.forward is around
    assert len(calls) > 4


@often
def test_a_saved_decoder_is_a_decoder_and_under_a_head(name: str, case: str, tmp_path: Path) -> None:
    """By whichever class, where the config alone says what is done; else by ropescale, of the class that is named."""
    method, knobs = METHODS[case]
    whole, ids = family(name), prompts(length=150)
    native = whole.model(ids).last_hidden_state
    model = AutoModel.from_config(config_of(name)).eval()
    model.load_state_dict(whole.model.state_dict())
    for one, folder in (
        (ropescale.patch(model, method, **knobs), "bare"),
        (ropescale.patch(whole, method, **knobs), "whole"),
    ):
        one.save_pretrained(tmp_path / folder)
    expected = model(ids).last_hidden_state
    assert apart(expected, native) > 1e-3
    loaded = ropescale.load(tmp_path / "bare")
    assert type(loaded) is type(model)
    headless = AutoConfig.from_pretrained(tmp_path / "whole")
    headless.architectures = [type(model).__name__]
    with pytest.warns(UserWarning, match="has no place"):
        inner = ropescale.load(tmp_path / "whole", config=headless)
    assert type(inner) is type(model)
    for found in (loaded, inner):
        assert torch.equal(found(ids).last_hidden_state, expected)
        assert torch.equal(ropescale.unpatch(found)(ids).last_hidden_state, native)
    headed = AutoConfig.from_pretrained(tmp_path / "bare")
    headed.architectures = [type(whole).__name__]
    with pytest.warns(UserWarning, match="its head is random"):
        assert torch.equal(ropescale.load(tmp_path / "bare", config=headed).model(ids).last_hidden_state, expected)
    for auto, folder in ((AutoModel, "bare"), (AutoModel, "whole"), (AutoModelForCausalLM, "bare")):
        if case != "fixed":
            with pytest.raises(CheckpointError, match=r"must be loaded by ropescale, .*; call ropescale\.load"):
                auto.from_pretrained(tmp_path / folder)
            continue
        native_ = auto.from_pretrained(tmp_path / folder)
        assert torch.equal(native_.base_model(ids).last_hidden_state, expected)
        assert ropescale.record(native_).method == method  # type: ignore[union-attr]


BOTH_WAYS = {
    "gemma3_text": {"use_bidirectional_attention": True},  # EmbeddingGemma
    "llama": {"is_causal": False},
    "qwen2": {"is_causal": False},
}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_layers_that_read_later_tokens_too_are_rescaled_by_fixed_frequencies_alone(name: str) -> None:
    """What acts in attention reads backwards: in a long text it would hide what comes after a token."""
    model, ids = AutoModel.from_config(config_of(name, **BOTH_WAYS[name])).eval(), prompts(length=150)
    ending = torch.cat((ids[:, :-1], (ids[:, -1:] + 1) % 90), dim=1)

    def of_the_end() -> float:
        return apart(model(ids).last_hidden_state[:, 120], model(ending).last_hidden_state[:, 120])

    if of_the_end() == 0:
        pytest.skip("this Transformers reads the entry otherwise")
    before = model(ids).last_hidden_state
    for case, remedy in (
        ("late", "use a method of fixed frequencies, such as yarn"),
        ("by length", "use a method of fixed frequencies, such as yarn"),
        ("fixed with log-n", r"leave out what makes it act in attention \(log_n, temperature, layers\)"),
    ):
        method, knobs = METHODS[case]
        with pytest.raises(
            UnsupportedModelError,
            match=rf"^{name}: {method} needs layers that read earlier tokens alone, got layer 0, which reads later "
            rf"ones too, as embedding models are built to do; {remedy}$",
        ):
            ropescale.patch(model, method, **knobs)
        assert torch.equal(model(ids).last_hidden_state, before)
    ropescale.patch(model, "yarn", factor=2)
    assert of_the_end() > 0
    assert apart(model(ids).last_hidden_state, before) > 1e-4
    assert torch.equal(ropescale.unpatch(model)(ids).last_hidden_state, before)


def test_a_call_that_asks_to_read_both_ways_is_refused() -> None:
    model = ropescale.patch(built("llama", "decoder"), "dynamic_yarn")
    with pytest.raises(
        RopescaleError, match=r"^is_causal: must be left out with dynamic_yarn, .*, got False; leave it out"
    ):
        model(prompts(length=20), is_causal=False)
