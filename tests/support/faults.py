"""Faults that are planted in a checkpoint: entries of its files, a patch, and how a finding reads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ropescale
from ropescale.doctor.finding import Finding

YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 64}
FORM = re.compile(r"[^;]+: .*must .*, got .+; .+")  # {what}: {rule}, got {value}; {what to do}


def edited(name: str = "config.json", **entries: Any) -> Callable[[Path], Any]:
    """Write entries into a file of a checkpoint; None takes one out."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        values = {key: value for key, value in {**values, **entries}.items() if value is not None}
        (folder / name).write_text(json.dumps(values))

    return edit


def without_value(name: str) -> Callable[[Path], Any]:
    """Write null for an entry of the config."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: None}))

    return edit


def scaled(**entries: Any) -> Callable[[Path], Any]:
    """A yarn checkpoint of 64 x 4 tokens with other entries in its rope_parameters; None takes one out."""
    rope = {key: value for key, value in {**YARN, **entries}.items() if value is not None}
    return edited(rope_parameters=rope, max_position_embeddings=256)


def patched(method: str = "yarn", **arguments: Any) -> Callable[[Path], Any]:
    def patch(folder: Path) -> None:
        model = ropescale.load(folder)
        ropescale.patch(model, method, factor=4, **arguments)
        model.save_pretrained(folder)

    return patch


def checks(found: list[Finding]) -> set[str]:
    return {finding.check for finding in found}
