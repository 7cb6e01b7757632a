"""ms-swift: rope_scaling as JSON, where the config has one rotation."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ropescale.frameworks.base import Framework, in_own_loop

OWN = {"rope_parameters", "max_position_embeddings"}  # entries that its arguments have a word for


class MSSwift(Framework, name="ms_swift"):
    """The arguments `--rope_scaling` and `--max_model_len`; a folder where a config states more than they say."""

    title = "ms-swift"
    read = "3602360a, 2026-08-22"
    misreads = (
        "--rope_scaling yarn, as a word, takes the config's maximum for the original length, also where that was "
        "raised already, and rounds the factor up",
        "--max_model_len without --rope_scaling works the factor of an extended checkpoint out anew: a linear one, "
        "which states no original length, is read with factor 1",
    )
    instead = in_own_loop(title)

    def states(self, fields: Mapping[str, Any]) -> bool:
        """One rotation, and no entry that its arguments have no word for."""
        rope = fields["rope_parameters"]
        return set(fields) <= OWN and not any(isinstance(value, dict) for value in rope.values())

    def settings(self, model: str, fields: Mapping[str, Any] | None, length: int) -> str:
        """Its command."""
        words = ["swift", "sft", "--model", model]
        if fields is not None:
            words += ["--rope_scaling", json.dumps(fields["rope_parameters"]), "--max_model_len", str(length)]
        return shlex.join([*words, "--max_length", str(length)])
