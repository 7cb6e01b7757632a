"""`ropescale.train`: what `ropescale train` does, from Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropescale.recipes.reading import read_recipe
from ropescale.recipes.train import Ledger, run
from ropescale.trust import takes_trust


@takes_trust
def train(
    recipe: str | Path,
    *,
    model: str | Path | None = None,
    output: str | Path | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Ledger:
    """Patch a model and fine-tune it by a recipe; returns what `training.json` in the output folder then holds.

    The same as `ropescale train`, with its options as arguments: the folder gets the adapter with its scaling (or the
    whole model), training.json and training.html, and a run that was stopped goes on when it is called again.

    Args:
        recipe: a name from `ropescale train --list`, or the path of a .yaml file.
        model: a short name, a path or a hub id; needed unless the recipe names one.
        output: the folder that everything goes to; out/train-RECIPE-MODEL if not given.
        trust_remote_code: run Python code that lies in the checkpoint.
        options: of the recipe, as `ropescale train RECIPE --help` lists them, with underscores: method, factor,
            schedule, data, max_steps, learning_rate ... None leaves the recipe's own value.

    Example:
        >>> import ropescale
        >>> from pathlib import Path
        >>> run = ropescale.train("lora", model="tiny", factor=2, max_steps=2, output="run")
        >>> Path("run", "training.html").is_file()
        True

    Raises:
        InvalidArgumentError: a recipe that does not fit the model or the data, or a folder of another run.
        CheckpointError: something that cannot be read or written.
        RopescaleError: a loss that is not a number; whatever `patch` raises.
    """
    given = {"model": model, "output": output, **options}
    overrides = [override for name, value in given.items() if value is not None for override in _option(name, value)]
    return run(read_recipe(str(recipe), overrides), f"ropescale.train({str(recipe)!r}, ...)")


def _option(name: str, value: Any) -> list[str]:
    """One option as the command line has it, so that both are read by the same rules."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, (list, tuple)):
        return [option, *map(str, value)]
    return [f"{option}={json.dumps(value) if isinstance(value, Mapping) else value}"]
