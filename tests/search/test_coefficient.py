"""The coefficient of a temperature, fitted on the model itself."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
import torch

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.errors import InvalidArgumentError
from ropescale.evals import texts
from ropescale.evals.forward import resting
from ropescale.search import fit_temperature
from ropescale.search.objective import Weights, samples
from ropescale.temperature import Temperature, least


@pytest.mark.parametrize("lowest", [0.02, 0.4, 0.777, 1.9])
def test_the_least_of_a_valley_is_found(lowest: float) -> None:
    best, tried = least(lambda coefficient: (coefficient - lowest) ** 2, 2.0)
    assert abs(best - lowest) < 0.02
    assert 0.0 in tried
    assert len(tried) < 14


def test_where_every_coefficient_costs_more_than_none_none_is_found() -> None:
    assert least(lambda coefficient: coefficient, 2.0)[0] == 0


@pytest.mark.slow
def test_a_fitted_coefficient_costs_less_than_none_and_than_the_published_one() -> None:
    model, tokenizer = ropescale.load("tiny"), read_tokenizer(resolve("tiny"))
    ids = torch.arange(1, 200)[None]
    with torch.no_grad():
        before = model(ids).logits
    found = fit_temperature(model, tokenizer, "log_n", method="yarn", factor=2, windows=1, objective="needle")
    assert ropescale.record(model) is None
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)

    read = samples(tokenizer, texts.training_sample(), original_length=128, length=256, needles=2, limit=1, seed=0)
    with resting(model):
        plain = read.figures(model)

        def cost(temperature: Temperature | str | None) -> float:
            with ropescale.patched(model, "yarn", factor=2, temperature=temperature):
                return read.figures(model).total(Weights.of("needle", {}), plain)

        assert cost(found) < min(cost(None), cost("log_n"))


@pytest.mark.slow
def test_the_verb_prints_a_coefficient_and_a_command_that_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "fit",
        "tiny",
        "--factor",
        "2",
        "--windows",
        "1",
        "--temperature",
        "llama4",
        "--knobs",
        '{"beta_fast": 16}',
    ]
    assert cli.main(given) == 0
    found, following = capsys.readouterr().out.splitlines()
    tokenizer = read_tokenizer(resolve("tiny"))
    named = fit_temperature(
        ropescale.load("tiny"), tokenizer, "llama4", method="yarn", factor=2, windows=1, beta_fast=16
    )
    assert found.startswith(f"llama4:{named.coefficient:g}")
    command = shlex.split(following.removeprefix("next: ropescale "))
    assert json.loads(command[-1]) == {"yarn": {"beta_fast": 16, "temperature": str(named)}}
    assert cli.main([*command, "--tasks", "position", "--windows", "1", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rule": "warm", "factor": 2}, "rule: must be one of drope, llama4, log_n, scalable, yarn, got 'warm'"),
        ({"objective": "speed", "factor": 2}, "objective: must be one of needle, text, position, longppl, sum, got"),
        ({"method": "rerope"}, "target_length: must be given, or factor instead, and lie above the original length"),
        ({"factor": 1}, "target_length: must be given, or factor instead, and lie above the original length"),
    ],
)
def test_what_cannot_be_fitted_is_told_in_words(given: dict[str, Any], says: str) -> None:
    model = ropescale.load("tiny")
    with pytest.raises(InvalidArgumentError, match=re.escape(says)):
        fit_temperature(model, read_tokenizer(resolve("tiny")), **given)
    assert ropescale.record(model) is None
