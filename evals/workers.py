"""The processes that run the cells of one folder: which cell is whose, what others have finished, how it ends.

Every process that is given the same command takes the cells that nobody has, one at a time, and writes what it found
into the same `results.jsonl`. It does so while it holds the lease on it, opens the file after it was given the lease
and closes it before it gives it back: that is when NFS lets one machine see what another one has written, and two
never write at once. So the file is at any time what one process alone would have left, in another order, and after a
kill nothing has to be put together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ropescale.destinations import LOCK, make_folder, sole_writer
from ropescale.errors import InvalidArgumentError
from ropescale.evals import results
from ropescale.evals.leases import Holder, Leases
from ropescale.evals.results import Cell, Key, Results, Session, Settings

FOLDER = ".cells"  # in that of results: who is at work on what
WRITING = "results"  # the lease on the files of results


class Worker:
    """One process of those that run the cells of a folder, as it sees the folder."""

    def __init__(self, leases: Leases, found: Results) -> None:
        self.found = found
        self._leases = leases
        self._shared = False
        self._seen = self._stamp()

    @classmethod
    @contextmanager
    def joined(
        cls, folder: Path, settings: Settings, session: Session, asked: Mapping[str, Any], records: Sequence[Cell]
    ) -> Iterator[Worker]:
        """A worker on a folder within a block, beside others that may be there.

        Args:
            folder: of results.
            settings: of these cells.
            session: who runs them on what.
            asked: what else the cells follow from, in which all workers must agree.
            records: the cells that say what was done to the model, which every worker knows.

        Raises:
            InvalidArgumentError: a folder of other settings, or one in which others run other cells.
            CheckpointError: nothing can be written there.
        """
        make_folder(folder)
        results.begun(folder, settings)
        with Leases(folder / FOLDER, note=_digest([{**asdict(settings), "notes": ()}, asked])) as leases:
            with leases.holding(WRITING):
                if (folder / LOCK).exists():  # of a training or a search, which may be writing there
                    with sole_writer(folder):
                        pass
                _require_same(folder, leases)
                found = results.start(folder, settings, session)
                for record in records:
                    if record.key not in found.cells:
                        found.append(record, seconds=0.0, tokens=0)
            yield cls(leases, found)

    def turn(self, key: Key, missing: Callable[[], int | None]) -> tuple[bool, int | None]:
        """Whether a cell is nobody else's, and from which sample or row on this process has it to run.

        Args:
            key: of the cell.
            missing: from which sample or row on it is missing in `found`; None where it is finished.
        """
        self.reread()
        if missing() is None:
            return True, None
        if not self._leases.take(_digest(key)):
            return False, missing()
        self.reread()  # it may have been finished before it was free
        if (first := missing()) is None:
            self._leases.release(_digest(key))
        return True, first

    def reread(self) -> None:
        """Take in what others have written."""
        self._shared = self._shared or self._leases.accompanied()
        if (now := self._stamp()) != self._seen:
            self.found.reread()
            self._seen = now

    def finish(self, cell: Cell, *, seconds: float, tokens: int) -> None:
        """Write a finished cell, which is then free for whoever asks more of it.

        Raises:
            CheckpointError: it cannot be written; the files are as they were.
        """
        with self._leases.holding(WRITING):
            self.reread()
            self.found.cut_torn_lines()  # of one that was killed while it wrote
            self.found.append(cell, seconds=seconds, tokens=tokens)
            self._seen = self._stamp()
        self._leases.release(_digest(cell.key))

    def who(self, key: Key) -> Holder | None:
        """Who runs a cell."""
        return self._leases.who(_digest(key))

    def end(self, order: Sequence[Key]) -> None:
        """Leave the folder as one process would have: the lines of a run that was shared in the order of its cells.

        Raises:
            CheckpointError: it cannot be written; the files are as they were.
        """
        with self._leases.holding(WRITING):
            self.reread()
            if self._shared:
                self.found.arrange(order)
                self.found.reread()
            self._leases.sweep()

    def _stamp(self) -> list[tuple[int, int, int]]:
        """By what it is seen that the files of results are others."""
        states = [path.stat() for name in results.LINES if (path := self.found.folder / name).exists()]
        return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _require_same(folder: Path, leases: Leases) -> None:
    """Refuse a folder in which others run cells of another command.

    Raises:
        InvalidArgumentError: names one of them.
    """
    for other in leases.others():
        if other.note != leases.note:
            raise InvalidArgumentError(
                f"output: runs that share a folder must be given the same command, got {str(folder)!r}, where "
                f"{other.label} runs another; wait for it, or choose another folder with output=DIR"
            )


def _digest(what: Any) -> str:
    """A name for what JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
