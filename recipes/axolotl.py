"""A plugin of axolotl: the model is patched as soon as it is built, before any adapter, and measured while it trains.

In its YAML file:

    plugins:
      - ropescale.recipes.axolotl.RopescalePlugin
    ropescale:
      method: yarn
      factor: 4
      pose: {chunks: 2}
      evaluate: {lengths: [128, 512], passkeys: 10, steps: 50}

What stands beside `pose` and `evaluate` are the arguments of `ropescale.patch`, its knobs included; late methods too.
With `pose` rows are read at skip-wise positions up to the target length (axolotl's own `use_pose` and `sample_packing`
stay off), with `evaluate` perplexity and passkeys by length are logged: see `PoseCollator` and `EvaluationCallback`.
The adapter that was trained carries its scaling. Written against `BasePlugin` of commit 067b021c (2026-07-24).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from ropescale.adapters import add_record
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.patching import patch, record
from ropescale.recipes.callbacks import EvaluationCallback
from ropescale.recipes.collators import PoseCollator

OURS = ("pose", "evaluate")  # settings that are not those of `patch`
MODULE = "ropescale.recipes.axolotl"  # as axolotl's file names it


class Settings(BaseModel):  # of pydantic, which axolotl brings
    """What axolotl's file may say beside its own settings."""

    ropescale: dict[str, Any] | None = None


class RopescalePlugin(BasePlugin):  # type: ignore[misc]  # axolotl is not here when types are checked
    """What axolotl calls on its way from a file to a trained model."""

    def __init__(self) -> None:
        super().__init__()
        self._model: Any = None

    def get_input_args(self) -> str:
        """Where axolotl finds `Settings`."""
        return f"{MODULE}.{Settings.__name__}"

    def post_model_build(self, cfg: Any, model: Any) -> None:
        """Patch the model.

        Raises:
            InvalidArgumentError: no settings, or some that `patch` has no argument for.
            RopescaleError: whatever else `patch` raises.
        """
        given = {name: value for name, value in settings(cfg).items() if name not in OURS}
        patch(model, **given)
        self._model = model

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[Any, dict[str, Any]] | None:
        """The collator, where rows are to be read at skip-wise positions."""
        if is_eval or "pose" not in settings(cfg):
            return None
        if cfg.get("sample_packing"):
            raise InvalidArgumentError(
                "pose: needs rows of one document, got sample_packing true; set `sample_packing: false`"
            )
        chosen = dict(settings(cfg)["pose"] or {})
        done = record(self._model)
        if done is None:
            raise InvalidArgumentError(
                "pose: needs a model that was patched, got one that is not; let the plugin build it"
            )
        return collator_for(PoseCollator(target_length=done.target_length, model=self._model, **chosen)), {}

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """What measures."""
        if "evaluate" not in settings(cfg):
            return []
        return [EvaluationCallback(trainer, **dict(settings(cfg)["evaluate"] or {}))]

    def post_train(self, cfg: Any, model: Any) -> None:
        """Have the adapter carry its scaling."""
        folder = Path(cfg["output_dir"])
        if (folder / "adapter_config.json").is_file():
            add_record(model, folder)


def settings(cfg: Any) -> dict[str, Any]:
    """What stands under `ropescale`.

    Raises:
        InvalidArgumentError: nothing.
    """
    given = cfg.get("ropescale")
    if not isinstance(given, Mapping) or not given:
        raise InvalidArgumentError(
            f"ropescale: must be settings of axolotl's file, such as {{method: yarn, factor: 4}}, got "
            f"{shortened(given)}; write them there"
        )
    return {str(name): value for name, value in given.items()}


def collator_for(collator: PoseCollator) -> Any:
    """What axolotl calls with its tokenizer and settings of padding: ours fills rows up by itself."""
    return lambda tokenizer, **padding: collator
