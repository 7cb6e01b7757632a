"""The rows of the task `cloze`: a beginning, four ways to go on, and which of them is right."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import datasets


def dataset(**_: Any) -> dict[str, datasets.Dataset]:
    """All questions; they are few, short and the same for every length and seed."""
    lines = files("ropescale.evals.tasks.cloze").joinpath("cloze.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
