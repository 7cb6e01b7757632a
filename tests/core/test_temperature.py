"""What queries are multiplied by: each rule against its formula, how one is spelled, and what a record says of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ropescale
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.records import Record
from ropescale.temperature import LOG_N, RULES, Temperature

CASES = json.loads((Path(__file__).parents[1] / "reference" / "temperature.json").read_text())
INSIDE = {"llama4": -1, "log_n": 0, "yarn": 0}  # rules that are 1 within the original length, but for so many tokens
PROMPT = torch.arange(1, 301)[None]


def found(case: dict[str, Any]) -> torch.Tensor:
    temperature = Temperature(rule=case["rule"], coefficient=case["coefficient"])
    multiplier = temperature.multiplier(torch.tensor(case["positions"]), case["length"], case["factor"])
    assert multiplier is not None
    return multiplier


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_its_formula(rule: str) -> None:
    own = [case for case in CASES if case["rule"] == rule]
    assert len(own) == 40
    for case in own:
        theirs = torch.tensor(case["multipliers"], dtype=torch.float64)
        assert torch.allclose(found(case).double(), theirs, rtol=1e-5, atol=1e-6), case


def test_the_reference_knows_every_rule_with_its_published_coefficient() -> None:
    published = {case["rule"]: case["coefficient"] for case in CASES if case["published"]}
    assert published == {name: rule.coefficient for name, rule in RULES.items()}


@pytest.mark.parametrize("rule", sorted(INSIDE))
@pytest.mark.parametrize("length", [2, 7, 128, 8192])
def test_queries_within_the_original_length_keep_every_bit(rule: str, length: int) -> None:
    for coefficient in (RULES[rule].coefficient, 0.37):
        multiplier = Temperature(rule=rule, coefficient=coefficient).multiplier(torch.arange(3 * length), length, 4.0)
        assert multiplier is not None
        end = length + INSIDE[rule]
        assert bool((multiplier[:end] == 1).all())
        assert bool((multiplier[length:] > 1).all())


def test_published_log_n_is_the_plain_formula_to_the_bit_beyond_the_original_length() -> None:
    positions = torch.arange(2**17)
    for length in (2, 3, 128, 4096):
        plain = ((positions + 1).float().log() / math.log(length)).clamp(min=1.0)
        multiplier = LOG_N.multiplier(positions, length, 1.0)
        assert multiplier is not None
        assert torch.equal(multiplier[length:], plain[length:])


@pytest.mark.parametrize("rule", [name for name in RULES if name != "scalable"])
def test_without_a_coefficient_nothing_is_multiplied(rule: str) -> None:
    multiplier = Temperature(rule=rule, coefficient=0).multiplier(torch.arange(900), 128, 8.0)
    assert multiplier is not None
    assert bool((multiplier == 1).all())


@pytest.mark.parametrize("rule", RULES)
def test_a_model_of_one_token_and_padding_before_the_first_are_left_alone(rule: str) -> None:
    temperature = Temperature.of(rule)
    assert temperature.multiplier(torch.arange(4), 1, 4.0) is None
    padded = temperature.multiplier(torch.tensor([-3, -1, 0]), 16, 4.0)
    assert padded is not None
    assert bool((padded == padded[2]).all())


@pytest.mark.parametrize(
    ("given", "rule", "coefficient", "said"),
    [
        ("llama4", "llama4", 0.1, "llama4"),
        ("llama4:0.1", "llama4", 0.1, "llama4"),
        ("log_n:0.8", "log_n", 0.8, "log_n:0.8"),
        ("yarn:1e-3", "yarn", 0.001, "yarn:0.001"),
        ({"rule": "drope"}, "drope", 0.103, "drope"),
        ({"rule": "scalable", "coefficient": 2}, "scalable", 2.0, "scalable:2.0"),
        (LOG_N, "log_n", 1.0, "log_n"),
    ],
)
def test_a_temperature_is_spelled_in_one_way_and_read_in_several(
    given: Any, rule: str, coefficient: float, said: str
) -> None:
    temperature = Temperature.of(given)
    assert (temperature.rule, temperature.coefficient, str(temperature)) == (rule, coefficient, said)
    assert Temperature.of(said) == temperature


KINDS = "drope, llama4, log_n, scalable, yarn"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("logn", f"temperature: must be one of {KINDS}, got 'logn'; leave it out for none"),
        (
            "log_n:hot",
            "temperature: the coefficient of log_n must be a number from 0 to 100, got 'hot'; leave it out for 1",
        ),
        ("log_n:", "temperature: the coefficient of log_n must be a number from 0 to 100, got ''; leave it out for 1"),
        (
            {"rule": "yarn", "coefficient": -0.1},
            "temperature: the coefficient of yarn must be a number from 0 to 100, got -0.1; leave it out for 0.1",
        ),
        (
            {"rule": "yarn", "coefficient": True},
            "temperature: the coefficient of yarn must be a number from 0 to 100, got True; leave it out for 0.1",
        ),
        (
            "drope:nan",
            "temperature: the coefficient of drope must be a number from 0 to 100, got nan; leave it out for 0.103",
        ),
        (
            0.8,
            f"temperature: must be a rule ({KINDS}), with or without a coefficient, got 0.8; write it as in 'log_n' "
            "or 'log_n:0.8'",
        ),
        (
            {"rule": "log_n", "scale": 2},
            f"temperature: must be a rule ({KINDS}), with or without a coefficient, got "
            "{'rule': 'log_n', 'scale': 2}; write it as in 'log_n' or 'log_n:0.8'",
        ),
    ],
)
def test_what_is_no_temperature_is_told_in_words(given: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        ropescale.patch(ropescale.load("tiny"), "yarn", factor=4, temperature=given)
    assert str(refusal.value) == says


def test_two_spellings_at_once_are_refused_with_both_names() -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        ropescale.patch(ropescale.load("tiny"), "yarn", factor=4, log_n=True, temperature="llama4")
    assert str(refusal.value) == (
        "temperature: must be left out with log_n=True, which is a temperature itself, got 'llama4' beside it; give "
        "one of the two"
    )


def test_a_rule_by_the_factor_needs_one() -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        ropescale.patch(ropescale.load("tiny"), "rerope", temperature="drope")
    assert str(refusal.value) == (
        "temperature: drope needs a factor, got rerope without one; give factor or target_length"
    )


def test_log_n_and_the_temperature_of_that_name_are_one_to_the_bit() -> None:
    model = ropescale.load("tiny")
    told = []
    for spelling in ({"log_n": True}, {"temperature": "log_n"}):
        with ropescale.patched(model, "yarn", factor=4, **spelling), torch.no_grad():
            told.append((model(PROMPT).logits, ropescale.record(model)))
    assert torch.equal(told[0][0], told[1][0])
    assert told[0][1] == told[1][1]
    assert told[0][1].to_dict() == told[1][1].to_dict()


def test_dropes_scale_of_nope_is_the_same_by_either_knob() -> None:
    model = ropescale.load("tiny")
    told = []
    for knobs in ({"logit_scale": "drope", "coefficient": 0.3}, {"temperature": "drope:0.3"}):
        with ropescale.patched(model, "nope", factor=4, **knobs), torch.no_grad():
            told.append(model(PROMPT).logits)
    assert torch.equal(*told)


@pytest.mark.parametrize("rule", RULES)
def test_a_model_saved_with_a_temperature_comes_back_with_it(rule: str, tmp_path: Path) -> None:
    model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4, temperature={"rule": rule, "coefficient": 0.7})
    with torch.no_grad():
        before = model(PROMPT).logits
    model.save_pretrained(tmp_path / "saved")
    again = ropescale.load(tmp_path / "saved")
    assert ropescale.record(again) == ropescale.record(model)
    with torch.no_grad():
        assert torch.equal(again(PROMPT).logits, before)
    plain = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    with torch.no_grad():
        assert not torch.allclose(plain(PROMPT).logits, before, atol=1e-2)


def test_a_record_without_a_temperature_reads_as_in_earlier_versions() -> None:
    for given in ({}, {"log_n": True}, {"temperature": "log_n"}):
        record = ropescale.record(ropescale.patch(ropescale.load("tiny"), "yarn", factor=4, **given))
        assert record is not None
        assert "temperature" not in record.to_dict()
        assert record.temperature == (LOG_N if given else None)
        assert Record.from_dict(record.to_dict()) == record


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"temperature": {"rule": "warm"}}, "config: temperature of the ropescale record must be one of version"),
        ({"temperature": "llama4"}, "config: temperature of the ropescale record must be a dict, got 'llama4'"),
        ({"temperature": {"rule": "log_n"}}, "must be another one than log_n, which has a field of its own"),
        ({"temperature": {"rule": "yarn"}, "log_n": True}, "must be another one than log_n"),
    ],
)
def test_a_record_that_was_edited_is_refused(edit: dict[str, Any], says: str) -> None:
    record = ropescale.record(ropescale.patch(ropescale.load("tiny"), "yarn", factor=4))
    assert record is not None
    with pytest.raises(CheckpointError, match=re.escape(says)):
        Record.from_dict({**record.to_dict(), **edit})
