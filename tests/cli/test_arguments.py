"""Values that the command line reads."""

import argparse

import pytest

from ropescale.cli.arguments import minutes


@pytest.mark.parametrize(("text", "value"), [("90s", 1.5), ("30m", 30.0), ("2h", 120.0), ("0.5", 0.5), ("12", 12.0)])
def test_a_time_has_a_unit_or_is_in_minutes(text: str, value: float) -> None:
    assert minutes(text) == value


@pytest.mark.parametrize("text", ["", "h", "0", "-1m", "nan", "inf", "2d", "1h30"])
def test_what_is_no_time_above_nothing_is_refused_as_it_was_typed(text: str) -> None:
    said = f"must be a time above 0, as in 90s, 30m or 2h, got {text!r}"
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        minutes(text)
