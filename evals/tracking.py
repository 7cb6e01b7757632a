"""Finished results handed to an experiment tracker, through the harness's own loggers.

One tracked run per arm, named by its label; the context length is the step, so that trackers draw it as an axis.
"""

from __future__ import annotations

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
        steps: dict[int, dict[str, dict[str, float]]] = {}
        for cell in results.cells.values():
            if cell.arm == arm and (figures := figures_of(cell)):
                steps.setdefault(cell.length or 0, {})[cell.task] = figures
        for step, metrics in sorted(steps.items()):
            logger.step = step
            logger.post_init({"results": metrics, "configs": {}, "versions": {}, "n-shot": {}, "config": {}})
            logger.log_eval_result()
        finish()


def figures_of(cell: Cell) -> dict[str, float]:
    """Metric -> value of one cell."""
    if cell.of_losses:
        return {"perplexity": cell.perplexity}
    return {name: float(value) for name, value in (cell.scores or {}).items()}


def _logger(tracker: str, results: Results, arm: Arm, project: str) -> tuple[Any, Callable[[], None]]:
    given = {"project": project, "name": f"{results.settings.model} {arm.label}", "group": results.settings.model}
    if tracker == "trackio":
        from lm_eval.loggers.trackio_logger import TrackioLogger

        logger = TrackioLogger(given)
        return logger, logger.finish
    from lm_eval.loggers import WandbLogger

    logger = WandbLogger(given)
    return logger, logger.run.finish
