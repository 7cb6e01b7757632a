"""Requests into batches: what begins alike is read once, what is equally long together, and all of it padded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Span:
    """Ids, the last `scored` of which are to be scored; and the text for messages."""

    ids: tuple[int, ...]
    scored: int
    text: str


@dataclass(kw_only=True)
class Sheaf:
    """Spans that one forward pass answers: the inputs of each begin the sequence `ids`."""

    ids: tuple[int, ...]
    members: list[int]

    def cost(self, number: int) -> int:
        """Tokens that were read for a member: all for the first one, none for the others."""
        return len(self.ids) if number == self.members[0] else 0


def sheaves_of(spans: Sequence[Span], *, shared: bool) -> list[Sheaf]:
    """Spans by the sequences that answer them: with `shared` every beginning of a sequence, else only equals."""
    inputs = [span.ids[:-1] for span in spans]
    sheaves: list[Sheaf] = []
    # In falling order a sequence comes after all that begin with it, and right after one of them
    for number in sorted(range(len(spans)), key=lambda number: inputs[number], reverse=True):
        ids = inputs[number]
        whole = sheaves[-1].ids if sheaves else ()
        if sheaves and (whole[: len(ids)] == ids if shared else whole == ids):
            sheaves[-1].members.append(number)
        else:
            sheaves.append(Sheaf(ids=ids, members=[number]))
    return sheaves


def batches(lengths: Sequence[int], tokens: int, most: int | None, padding: float) -> list[list[int]]:
    """Indices by falling length, in batches of at most `tokens` tokens and `padding` times their longest padded."""
    made: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if made:
            batch = made[-1]
            longest = lengths[batch[0]]
            fits = (len(batch) + 1) * longest <= tokens and (most is None or len(batch) < most)
            if fits and longest - lengths[index] <= padding * longest:
                batch.append(index)
                continue
        made.append([index])
    return made


def padded(rows: Sequence[Sequence[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """[rows, longest] int64 ids and mask."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[number, where] = torch.tensor(row, dtype=torch.long)
        mask[number, where] = 1
    return ids, mask


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def bounds(owners: Sequence[int], owner: int) -> tuple[int, int]:
    """Where the windows of a text stand; owners never fall."""
    return bisect_left(owners, owner), bisect_left(owners, owner + 1)
