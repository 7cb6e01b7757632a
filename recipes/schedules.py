"""Schedules: what rows of documents become on their way into a training step.

A schedule decides how long rows are, and where their tokens stand; the method decides what positions do. Every draw
is a function of the seed and the number of the draw, so that a resumed run reads what one run would have. This room
knows rows and positions, neither models nor files.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ropescale.recipes.loss import IGNORED

SCHEDULES = ("full_length", "mixed_window", "pose", "recalibrate")
CONTENTS = ("contiguous", "skip")
SHORT = "short"  # key of a batch: tokens of documents that fit into the original length
DOCUMENTS = "documents"  # key of a batch: which document of its row each token is of


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Where the tokens of a row stand.

    - `full_length`: rows of the target length, at their own positions.
    - `recalibrate`: rows of the original length, at their own positions: for what replaces rotation.
    - `mixed_window` (LongRoPE2, arXiv:2502.20082): rows of the target length; documents that fit into the original
      length are read with the rotation of pretraining, longer ones with the method's.
    - `pose` (arXiv:2309.10400): rows of the original length, each document cut into chunks whose positions are moved
      apart, so that together they cover every distance up to the target length. With `content` "skip" the text
      between the chunks is skipped too, as far as draws of its own say; with "contiguous" the chunks follow on one
      another.

    A sliding window counts the tokens of a document, not their positions, as in a row of its own: a model that is
    trained with it sees as many tokens near a jump as elsewhere.

    Documents of a row are `apart` unless said otherwise: then a row is read as one text, at positions that run on
    through it (UltraLong, arXiv:2504.06214). The same tokens are learnt either way.
    """

    name: str
    original_length: int  # tokens
    target_length: int  # tokens
    length: int  # of a row in a step, tokens
    chunks: int = 2  # of pose
    content: str = "skip"  # of pose
    apart: bool = True  # whether documents of a row do not see one another

    @property
    def source_length(self) -> int:
        """Tokens of the rows that this schedule reads."""
        return self.target_length if self.name == "pose" and self.content == "skip" else self.length

    def drawn(self, row: dict[str, Any], rng: random.Random) -> dict[str, Tensor]:
        """One row as tensors of [length]: `input_ids`, `position_ids`, `documents`, `labels`, and `short`.

        Where the row says what of it is `learnt`, the other tokens have no label.
        """
        ids, positions, documents = (
            torch.as_tensor(row[name], dtype=torch.long) for name in ("input_ids", "position_ids", "documents")
        )
        learnt = torch.as_tensor(row.get("learnt", [1] * len(ids)), dtype=torch.bool)
        jumps: list[int] = []  # first tokens of chunks whose text was moved away from that before
        if self.name == "pose" and self.content == "skip":
            kept = skipped_content(len(ids), self.length, self.chunks, rng)
            ids, documents, learnt = ids[kept], documents[kept], learnt[kept]
            jumps = (torch.nonzero(kept.diff() > 1).flatten() + 1).tolist()
        first = torch.ones_like(documents, dtype=torch.bool)
        first[1:] = documents[1:] != documents[:-1]
        labels = ids.masked_fill(first | ~learnt, IGNORED)  # nothing before it tells the first token of a document
        if not self.apart:
            documents, positions = torch.zeros_like(documents), torch.arange(len(ids))
        if self.name == "pose":
            positions = skipped_positions(documents, self.target_length, self.chunks, rng, jumps)
        made = {"input_ids": ids, "position_ids": positions, DOCUMENTS: documents, "labels": labels}
        if self.name == "mixed_window":
            sizes = documents.bincount()
            made[SHORT] = (sizes <= self.original_length)[documents]
        return made

    def batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch: rows stacked, with `documents` where a row holds several, which only a `Separation` reads.

        Rows of one document need none of it. Transformers takes jumps of positions for the beginnings of documents
        where there is no mask, which would blind every chunk of `pose` to those before it, so these get a mask of
        ones.
        """
        stacked = stack(rows)
        if self.name == "pose" and DOCUMENTS not in stacked:
            stacked["attention_mask"] = torch.ones_like(stacked["input_ids"])
        return stacked


def stack(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows [tokens] as [rows, tokens], with `documents` where one of them holds several."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if not bool((stacked[DOCUMENTS][:, -1] > 0).any()):
        del stacked[DOCUMENTS]
    return stacked


def cut(length: int, chunks: int, rng: random.Random, jumps: Sequence[int] = ()) -> list[int]:
    """The sizes of `chunks` chunks of `length` tokens in all, every way to cut equally likely; fewer where it must.

    It is cut at the jumps, at most `chunks - 1`, before it is cut elsewhere. PoSE's code, which has two chunks alone,
    cuts the first off at half of the tokens at most.
    """
    others = [place for place in range(1, length) if place not in jumps]
    places = sorted([*jumps, *rng.sample(others, min(chunks, length) - 1 - len(jumps))])
    return [stop - start for start, stop in zip([0, *places], [*places, length], strict=True)]


def shifts(room: int, chunks: int, rng: random.Random) -> list[int]:
    """How far each chunk is moved: the first not at all, the next no less than the one before, at most `room`.

    PoSE draws each between the one before it and `room`; for two chunks that is uniform, as here. For more, sorted
    draws are uniform over all ways, where theirs crowd at the end.
    """
    return [0, *sorted(rng.randint(0, room) for _ in range(chunks - 1))]


def skipped_positions(
    documents: Tensor, target: int, chunks: int, rng: random.Random, jumps: Sequence[int] = ()
) -> Tensor:
    """[tokens] positions below `target`: each document from 0, its chunks moved apart.

    `jumps` are tokens before which text was skipped: a chunk begins there, so that none holds text that was not so.
    """
    positions = torch.empty_like(documents)
    at = 0
    for size in torch.unique_consecutive(documents, return_counts=True)[1].tolist():
        sizes = cut(size, chunks, rng, [jump - at for jump in jumps if at < jump < at + size])
        moved = torch.tensor(shifts(target - size, len(sizes), rng)).repeat_interleave(torch.tensor(sizes))
        positions[at : at + size] = torch.arange(size) + moved
        at += size
    return positions


def skipped_content(available: int, length: int, chunks: int, rng: random.Random) -> Tensor:
    """[length] indices of the tokens that are kept of a row, in their order."""
    sizes = cut(length, chunks, rng)
    room = available - length
    # unlike positions, the text may begin anywhere; PoSE's code keeps the first chunk at the beginning
    moved = torch.tensor(sorted(rng.randint(0, room) for _ in sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.arange(length) + moved


class Draws(Dataset[dict[str, Tensor]]):
    """The rows of a whole run in the order of training: draw by draw a function of the seed.

    All rows once in one order, then all in another, until there are enough for every step.
    """

    def __init__(self, rows: Any, schedule: Schedule, *, count: int, seed: int):
        self.rows, self.schedule, self.count, self.seed = rows, schedule, count, seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.count

    def row(self, draw: int) -> int:
        """The number of the row that a draw takes."""
        turn, place = divmod(draw, len(self.rows))
        if self._order[0] != turn:
            order = list(range(len(self.rows)))
            random.Random(f"order {self.seed} {turn}").shuffle(order)
            self._order = (turn, order)
        return self._order[1][place]

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        rng = random.Random(f"draw {self.seed} {draw}")
        return self.schedule.drawn(self.rows[self.row(draw)], rng)
