"""Documents of any size laid into rows of one length. Pure: it knows sizes alone.

What is longer than a row is cut into whole rows, and its rest packed with the shorter ones: a row is filled with the
largest piece that fits until none does, and then with the beginning of one that is cut for it. So a row holds as few
pieces as the sizes allow, and every row is full ("best-fit packing", 2404.10830, without padding).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Row = list["Piece"]


class Piece(NamedTuple):
    """Part of one document."""

    document: int
    start: int  # tokens
    stop: int


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Full rows, and what was left over where no full row could be made."""

    rows: list[Row]
    left_over: list[Piece]


def pack(sizes: Sequence[int], length: int, *, whole: Sequence[bool] | None = None, together: bool = True) -> Packing:
    """Rows of exactly `length` tokens from documents of these sizes (tokens, each at least 1).

    Documents marked in `whole` are never cut: they must not be longer than a row, and stay left over where nothing
    fills their row. Where documents must not be `together` in a row, all that fills no row by itself is left over.
    Equal input gives equal rows; documents of one size are taken in their order.
    """
    rows: list[Row] = []
    cuttable, solid = _Pieces(), _Pieces()
    for document, size in enumerate(sizes):
        if whole is not None and whole[document]:
            solid.add(Piece(document, 0, size))
            continue
        windows = size // length
        rows += [[Piece(document, length * i, length * (i + 1))] for i in range(windows)]
        if size % length:
            cuttable.add(Piece(document, length * windows, size))
    left_over: list[Piece] = []
    while cuttable or solid:
        row: Row = []
        space = length
        while space and (together or not row):
            pools = [pool for pool in (cuttable, solid) if pool.fitting(space)]
            if pools:
                piece = max(pools, key=lambda pool: pool.fitting(space)).take(space)
            elif cuttable:
                piece, rest = cuttable.cut(space)
                cuttable.add(rest)
            else:
                break
            row.append(piece)
            space -= piece.stop - piece.start
        if space:
            left_over += row
        else:
            rows.append(row)
    return Packing(rows=rows, left_over=left_over)


class _Pieces:
    """Pieces by size, the first of each size first."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # those that there are, ascending
        self._of: dict[int, deque[Piece]] = {}

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def add(self, piece: Piece) -> None:
        size = piece.stop - piece.start
        if size not in self._of:
            self._of[size] = deque()
            insort(self._sizes, size)
        self._of[size].append(piece)

    def fitting(self, space: int) -> int:
        """The size of the largest piece within `space`, 0 without one."""
        index = bisect_right(self._sizes, space)
        return self._sizes[index - 1] if index else 0

    def take(self, space: int) -> Piece:
        """The largest piece within `space`."""
        return self._pop(self.fitting(space))

    def cut(self, space: int) -> tuple[Piece, Piece]:
        """The smallest piece larger than `space`, in two: the first of them fills it."""
        piece = self._pop(self._sizes[bisect_left(self._sizes, space)])
        middle = piece.start + space
        return piece._replace(stop=middle), piece._replace(start=middle)

    def _pop(self, size: int) -> Piece:
        waiting = self._of[size]
        piece = waiting.popleft()
        if not waiting:
            del self._of[size]
            del self._sizes[bisect_left(self._sizes, size)]
        return piece
