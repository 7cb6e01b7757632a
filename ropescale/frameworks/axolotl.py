"""axolotl: every entry of config.json can be overridden by name, one after the other."""

import json
from collections.abc import Mapping
from typing import Any

from ropescale.frameworks.base import Framework


class Axolotl(Framework, name="axolotl"):
    """Entries of `overrides_of_model_config`, which take the place of the config's own before the model is built."""

    title = "axolotl"
    read = "067b021c, 2026-07-24"
    misreads = (
        "rope_scaling among overrides_of_model_config takes the place of rope_parameters, and theta is lost with it: "
        "Transformers 5 stops at a theta of None",
        "use_pose draws positions once, when the data are prepared, and cuts into equal chunks: every epoch sees the "
        "same distances",
    )
    instead = "list ropescale.recipes.axolotl.RopescalePlugin among its plugins"

    def states(self, fields: Mapping[str, Any]) -> bool:
        """Every entry has its place there."""
        return True

    def settings(self, model: str, fields: Mapping[str, Any] | None, length: int) -> str:
        """A piece of its YAML file."""
        said = [f"base_model: {json.dumps(model)}"]
        if fields is not None:
            said += ["overrides_of_model_config:", *(f"  {name}: {json.dumps(fields[name])}" for name in fields)]
        return "\n".join([*said, f"sequence_len: {length}"])
