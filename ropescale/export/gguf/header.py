"""The header of a .gguf file, walked before it is believed: what it counts has to have room in the file.

The package gguf takes every number of a header at its word, and a loop of 2**60 steps is one number. The layout is
that of version 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import struct
from pathlib import Path

from ropescale.errors import CheckpointError

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
# Bytes of a value by its type: uint8 to float64
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
MOST = 2**21  # values in arrays: vocabularies have some hundred thousand, with as many scores, types and merges
DIMENSIONS = 4  # of a tensor, by ggml


def require_sound(path: Path) -> None:
    """Refuse a file whose header counts more than it holds.

    Raises:
        CheckpointError: such a file, or none of GGUF.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise _unsound(path, f"must begin with {MAGIC.decode()}", "another beginning")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                _Walk(path, content).through()
            except struct.error as error:
                raise _unsound(path, "must hold all that its header counts", "a file that ends before") from error


def _unsound(path: Path, rule: str, got: str) -> CheckpointError:
    return CheckpointError(f"{path}: {rule}, got {got}; write or fetch the file again")


class _Walk:
    """One way through a header, from its first byte to the last tensor's description."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path, self.content, self.place, self.values = path, content, 4, 0
        version = struct.unpack_from("<I", content, 4)[0]
        self.order = "<" if version & 0xFFFF else ">"  # a small number, read the wrong way round, has no low bytes

    def through(self) -> None:
        self._number("I")
        tensors, entries = self._number("Q"), self._number("Q")
        for _ in range(self._counted(entries, 13)):  # of a name, a type and a byte
            self._skip(self._number("Q"))
            self._value(self._number("I"))
        for _ in range(self._counted(tensors, 24)):
            self._skip(self._number("Q"))
            dimensions = self._number("I")
            if dimensions > DIMENSIONS:
                raise _unsound(self.path, f"tensors must have at most {DIMENSIONS} dimensions", str(dimensions))
            self._skip(8 * dimensions + 12)

    def _value(self, kind: int) -> None:
        if kind == STRING:
            self._skip(self._number("Q"))
        elif kind in SIZES:
            self._skip(SIZES[kind])
        elif kind == ARRAY:
            inner, count = self._number("I"), self._number("Q")
            if inner not in (STRING, *SIZES):
                raise _unsound(self.path, "arrays must be of numbers or of texts", f"type {inner}")
            self.values += self._counted(count, SIZES.get(inner, 8))
            if self.values > MOST:
                raise _unsound(self.path, f"arrays must hold at most {MOST:,} values", f"{self.values:,}")
            if inner == STRING:
                for _ in range(count):
                    self._skip(self._number("Q"))
            else:
                self._skip(count * SIZES[inner])
        else:
            raise _unsound(self.path, "entries must be of a type that GGUF has", f"type {kind}")

    def _counted(self, count: int, least: int) -> int:
        """A number of things, each of so many bytes at least."""
        if count * least > len(self.content) - self.place:
            raise _unsound(self.path, "must hold all that its header counts", f"{count:,} of something")
        return count

    def _number(self, kind: str) -> int:
        value: int = struct.unpack_from(self.order + kind, self.content, self.place)[0]
        self.place += struct.calcsize(kind)
        return value

    def _skip(self, size: int) -> None:
        self.place += self._counted(size, 1)
