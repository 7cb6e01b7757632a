"""Brief fine-tunes that make an extension hold: what is trained on, how, and on which machines.

`ropescale.train` runs a recipe. Its pieces, for a training loop of one's own, load on first use:

    from ropescale.recipes import EvaluationCallback, MixedWindowCollator, PoseCollator, chunked_loss
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropescale.recipes.callbacks import EvaluationCallback
    from ropescale.recipes.collators import MixedWindowCollator, PoseCollator
    from ropescale.recipes.data.options import DataOptions
    from ropescale.recipes.data.preparing import prepare
    from ropescale.recipes.loss import chunked_loss

_HOMES = {
    "DataOptions": "data.options",
    "EvaluationCallback": "callbacks",
    "MixedWindowCollator": "collators",
    "PoseCollator": "collators",
    "chunked_loss": "loss",
    "prepare": "data.preparing",
}

__all__ = ["DataOptions", "EvaluationCallback", "MixedWindowCollator", "PoseCollator", "chunked_loss", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ropescale.recipes' has no attribute {name!r}")
    importlib.import_module("ropescale.failures").require_extras(f"ropescale.recipes.{name}", ["train"])
    return getattr(importlib.import_module(f"ropescale.recipes.{_HOMES[name]}"), name)
