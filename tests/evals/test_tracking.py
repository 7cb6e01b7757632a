"""What is handed to an experiment tracker: the figures of every cell, and trackers that are refused at once."""

import math

import pytest

from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.evals import tracking
from ropescale.evals.results import Cell


def test_a_tracker_that_the_harness_has_no_logger_for_is_named():
    with pytest.raises(InvalidArgumentError) as caught:
        tracking.check("tensorboard")
    assert str(caught.value) == (
        "report_to: must be one of trackio, wandb, which the harness has loggers for, got 'tensorboard'; "
        "report.json holds every figure for others"
    )


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(RopescaleError) as caught:
        tracking.check("wandb")
    assert str(caught.value) == ("report_to: wandb must be installed, got no package of that name; pip install wandb")


@pytest.mark.parametrize(
    ("cell", "figures"),
    [
        ({"task": "passkey", "scores": {"score": 0.5, "exact": 0.25}, "samples": []}, {"score": 0.5, "exact": 0.25}),
        (
            {"task": "perplexity", "samples": [{"nll": 2.0, "tokens": 1}, {"nll": 4.0, "tokens": 5}]},
            {"perplexity": math.e},
        ),
        ({"task": "position", "samples": [{"nll": [1.0, 3.0], "tokens": [1, 3]}]}, {"perplexity": math.e}),
        ({"task": "record", "record": None}, {}),
    ],
)
def test_the_figures_of_a_cell_are_token_weighted(cell, figures):
    cell = Cell.of({"method": "none", "factor": 1.0, **cell})
    assert tracking.figures_of(cell) == pytest.approx(figures)
