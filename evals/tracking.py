"""Finished results handed to an experiment tracker, through the harness's own loggers.

One tracked run per arm, named by its label; the context length is the step, so that trackers draw it as an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.evals.results import Arm, Cell, Results

TRACKERS = ("trackio", "wandb")  # those that the harness has a logger for


def check(tracker: str) -> None:
    """Refuse what could only fail after the costly part.

    Raises:
        InvalidArgumentError: the harness has no logger of that name.
        RopescaleError: the tracker's package is not installed.
    """
    if tracker not in TRACKERS:
        raise InvalidArgumentError(
            f"report_to: must be one of {', '.join(TRACKERS)}, which the harness has loggers for, got {tracker!r}; "
            f"report.json holds every figure for others"
        )
    try:
        import_module(tracker)
    except ImportError as error:
        raise RopescaleError(
            f"report_to: {tracker} must be installed, got no package of that name; pip install {tracker}"
        ) from error


def track(results: Results, tracker: str, project: str = "ropescale") -> None:
    """Log every arm's figures, one step per length; a cell without a length goes to step 0."""
    for arm in results.arms():
        logger, finish = _logger(tracker, results, arm, project)
        steps = sorted({key[3] or 0 for key in results.cells if key[1:3] == (arm.method, arm.factor)})
        for step in steps:
            figures = {
                key[0]: values
                for key, cell in results.cells.items()
                if key[1:3] == (arm.method, arm.factor) and (key[3] or 0) == step and (values := figures_of(cell))
            }
            if figures:
                logger.step = step
                logger.post_init({"results": figures, "configs": {}, "versions": {}, "n-shot": {}, "config": {}})
                logger.log_eval_result()
        finish()


def figures_of(cell: Cell) -> dict[str, float]:
    """Metric -> value of one cell."""
    if cell["task"] in ("position", "perplexity", "longppl"):
        nats = [loss for sample in cell["samples"] for loss in _list(sample["nll"])]
        tokens = [count for sample in cell["samples"] for count in _list(sample["tokens"])]
        return {"perplexity": math.exp(min(sum(nats) / sum(tokens), 700.0))}
    return {name: float(value) for name, value in cell.get("scores", {}).items()}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _logger(tracker: str, results: Results, arm: Arm, project: str) -> tuple[Any, Callable[[], None]]:
    given = {"project": project, "name": f"{results.settings.model} {arm.label}", "group": results.settings.model}
    if tracker == "trackio":
        from lm_eval.loggers.trackio_logger import TrackioLogger

        logger = TrackioLogger(given)
        return logger, logger.finish
    from lm_eval.loggers import WandbLogger

    logger = WandbLogger(given)
    return logger, logger.run.finish
