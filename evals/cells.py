"""What is stored of the rows of a cell, and a cell that is given more of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from ropescale.evals.results import Cell


def digest_of(sample: Mapping[str, Any]) -> str:
    """What a row asks of a model, and for which answer: 16 hex digits that are the same wherever these are.

    Rows of other seeds, tokenizers, texts or chat templates have others, so that samples of two folders are known to
    be the same without their places.
    """
    asked = [piece for arguments in sample["arguments"] for piece in arguments if isinstance(piece, str)]
    seen = hashlib.sha256()
    for piece in (*asked, str(sample.get("target"))):
        seen.update(piece.encode("utf-8", "surrogatepass") + b"\0")
    return seen.hexdigest()[:16]


def nats_of(sample: dict[str, Any]) -> list[float]:
    """The losses of a row's spans."""
    return [-float(loglikelihood) for loglikelihood, _ in sample["filtered_resps"]]


def answer(number: int, sample: dict[str, Any], main: str) -> dict[str, Any]:
    """One row of any other task: its score, and for what was generated also the reply."""
    row, reply = sample["doc"], sample["filtered_resps"][0]
    score = sample.get(main)
    kept: dict[str, Any] = {"id": number, "digest": digest_of(sample)}
    kept["score"] = float(score) if isinstance(score, (int, float)) else None
    if isinstance(reply, str):
        kept |= {"reply": reply, "target": sample["target"]}
    if "exact" in sample:
        kept["exact"] = float(sample["exact"])
    if "depth" in row:
        kept["depth"] = row["depth"]
    return kept


def window_of(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """What tells a row of text from others, or its sample."""
    tokens = row["tokens"]
    return row["document"], row["window"], tokens if isinstance(tokens, int) else sum(tokens)


def topped_up(earlier: Cell, more: Cell, depths: int) -> Cell:
    """A cell with more rows of text, or more samples of every depth, numbered as if all had been run at once."""
    old, new = earlier.samples, more.samples
    if more.scores is None or earlier.scores is None:
        return dataclasses.replace(more, samples=[*old, *new])
    before, after = len(old) // depths, len(new) // depths
    samples = [
        sample
        for depth in range(depths)
        for sample in (*old[depth * before : (depth + 1) * before], *new[depth * after : (depth + 1) * after])
    ]
    scores = {
        name: (earlier.scores[name] * len(old) + value * len(new)) / len(samples)
        for name, value in more.scores.items()
    }
    return dataclasses.replace(more, scores=scores, samples=[{**sample, "id": i} for i, sample in enumerate(samples)])
