"""Limits of length that stand beside a config: where a tokenizer, generation or an embedding stops a text.

They are raised with the maximum by whatever extends a model, on disk or live. A tokenizer's limit is one of positions
whatever it says. Another is one where it is the maximum or above: a smaller one is a length that somebody chose.
"""

import json
from pathlib import Path
from typing import Any

from ropescale.files import read_json

TOKENIZER, GENERATION = "tokenizer_config.json", "generation_config.json"
EMBEDDING = "sentence_bert_config.json"  # of sentence-transformers; vLLM reads it too
MAX_LENGTH = "max_length"
# The files, and the entry of each that is a limit
LIMITS = {EMBEDDING: "max_seq_length", GENERATION: MAX_LENGTH, TOKENIZER: "model_max_length"}


def outdated(file: str, settings: dict[str, Any], before: int, target: int) -> dict[str, Any]:
    """The limit in one of these files that would stop a text before its new maximum, as it is; empty if it would not.

    Args:
        file: one of `LIMITS`.
        settings: what the file holds.
        before: the maximum that the limit was written for, in tokens.
        target: the new maximum, in tokens.
    """
    name = LIMITS[file]
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value >= target:
        return {}
    return {name: value} if file == TOKENIZER or value >= before else {}


def raise_limits(folder: Path, before: int, target: int) -> dict[str, Any]:
    """Raise the limits in the files of a folder that would stop a text before its new maximum.

    Args:
        folder: of a checkpoint in the making.
        before: the maximum that the limits were written for, in tokens.
        target: the new maximum, in tokens.

    Returns:
        Those of generation, as they were.
    """
    old: dict[str, Any] = {}
    for name in LIMITS:
        settings = read_json(folder / name)
        if raised := outdated(name, settings, before, target):
            text = json.dumps({**settings, **dict.fromkeys(raised, target)}, indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")
            old |= raised if name == GENERATION else {}
    return old
