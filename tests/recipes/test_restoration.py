"""LongReD against a reference with a second, unpatched model as its teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import ropescale
from ropescale.recipes import restoration
from ropescale.recipes.restoration import Restoration

LENGTH = 48


def student() -> Any:
    """The embedded model under yarn, with an adapter that is not at its beginning."""
    torch.manual_seed(0)
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos, the mean over tokens, by its definition."""
    cosines = (one * other).sum(-1) / (one.pow(2).sum(-1).sqrt() * other.pow(2).sum(-1).sqrt())
    return (1 - cosines).mean()


def test_what_is_added_and_its_gradients_are_those_of_a_second_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher = student(), ropescale.load("tiny")
    ids = torch.randint(3, 400, (2, 100), generator=torch.Generator().manual_seed(1))
    drawn: list[Tensor] = []
    lay = restoration.skipped_positions

    def noted(*args: Any) -> Tensor:
        drawn.append(lay(*args))
        return drawn[-1]

    monkeypatch.setattr(restoration, "skipped_positions", noted)
    found = Restoration(model, length=LENGTH, target=512, weights=(5.0, 10.0)).loss(ids)
    found.backward()
    found = found.detach()
    own = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()

    assert len(drawn) == 2
    assert all(int(places.diff().max()) > 1 and int(places.max()) < 512 for places in drawn)
    short, mask = ids[:, :LENGTH], torch.ones(2, LENGTH, dtype=torch.long)
    with torch.no_grad():
        taught = teacher(input_ids=short, output_hidden_states=True).hidden_states
    learnt = model(input_ids=short, output_hidden_states=True).hidden_states
    moved = model(
        input_ids=short, position_ids=torch.stack(drawn), attention_mask=mask, output_hidden_states=True
    ).hidden_states
    layers = range(1, len(taught))
    assert len(layers) <= 6  # so that six are all that there are
    expected = 5 * sum(apart(learnt[layer], taught[layer]) for layer in layers) + 10 * apart(moved[-1], taught[-1])
    expected.backward()
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-6)
    assert own.keys() == {name for name, one in model.named_parameters() if one.grad is not None}
    for name, one in model.named_parameters():
        if one.grad is not None:
            assert float((own[name] - one.grad).abs().max()) <= 1e-6 * max(1.0, float(one.grad.abs().max())), name
    assert any(float(one.abs().max()) > 1e-3 for one in own.values())


def test_a_step_leaves_rotation_and_adapter_as_they_were() -> None:
    model = student()
    ids = torch.arange(3, 3 + LENGTH)[None]
    added = Restoration(model, length=LENGTH, target=512, weights=(5.0, 10.0))
    with torch.no_grad():
        before = model(input_ids=ids).logits
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    first = added.loss(ids)
    assert torch.equal(added.loss(ids), first)  # positions are drawn by the tokens
    assert float(first) > 0.01
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == trained
