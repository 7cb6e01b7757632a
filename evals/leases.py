"""Leases: which of several processes is at work on what, in a folder on a disk that their machines share.

A lease is a file that was created exclusively, which holds on NFS from version 3 on, where a lock of a file often does
not. It names its holder, and every holder has a file of its own that it touches every few seconds. Times are those of
the disk, so that the clocks of machines need not agree. A holder on the same machine that has died is known by its
process at once; one on another machine when its file was not touched for `STALE` seconds.

The lease of a dead holder is not taken away: two might do that at once, and one of them would take away the other's.
Its successor makes a file that is named after lease and holder, which can only be made once. What a process does that
was stopped for longer than `STALE` and goes on is done twice, and has to bear it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ropescale.destinations import (
    NOT_ELSEWHERE,
    make_folder,
    no_output,
    require_ordinary,
    require_own_folder,
    write_file,
)
from ropescale.errors import CheckpointError
from ropescale.files import parsed, read_text

BEAT = 15.0  # seconds between two touches
STALE = 120.0  # seconds; an NFS client may go by what it knew of a file for 60
SOON = 0.02  # seconds after which a lease that is held for moments is asked for again
MEMBER, LEASE = ".member", ".lease"
COMPANY = "company"  # a file that says that several were here
NOBODY = "nobody"  # holds a lease whose maker died before it wrote its name
APART = 5.0  # seconds by which the system's clock may shift the time at which one process began


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that takes leases."""

    id: str
    host: str
    machine: str  # what numbers processes: a boot of a machine, or a container on it
    process: int
    began: float  # seconds since 1970, which tells it from a later process of that number
    note: str  # what it does, for others to compare

    @property
    def label(self) -> str:
        """How a sentence names it."""
        return f"process {self.process} on {self.host}"


class Leases:
    """The leases of one process in a folder, within a block, at the end of which they are given back."""

    def __init__(self, folder: Path, note: str) -> None:
        self.folder = folder
        self.note = note
        self._own = Holder(
            id=uuid.uuid4().hex[:16],
            host=socket.gethostname(),
            machine=_machine(),
            process=os.getpid(),
            began=psutil.Process().create_time(),
            note=note,
        )
        self._taken: dict[str, Path] = {}
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="leases")

    def __enter__(self) -> Leases:
        """Begin to be known to others.

        Raises:
            InvalidArgumentError: the folder is a link.
            CheckpointError: nothing can be written there.
        """
        require_own_folder(self.folder, name="output")
        make_folder(self.folder)
        self._announce()
        if self._members():
            write_file(self.folder / COMPANY, "", name="output")
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._over.set()
        self._beating.join()
        with contextlib.suppress(OSError):  # what cannot be removed is known to be a dead process's
            for name in [*self._taken]:
                self.release(name)
            self._file(self._own.id).unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Whether the lease of that name is this process's from now on: nobody has it who is alive.

        Raises:
            InvalidArgumentError: something else stands in its place.
            CheckpointError: nothing can be written there.
        """
        path = self._first(name)
        while True:
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | NOT_ELSEWHERE, 0o644)
            except FileExistsError:
                holder = self._holder(path)
                if holder is None:  # it was given back meanwhile
                    continue
                if self._alive(holder, path) is not None:
                    return False
                path = self._after(name, holder)
            except OSError as error:
                raise no_output(self.folder, error) from error
            else:
                with os.fdopen(descriptor, "w") as file:
                    file.write(self._own.id)
                self._taken[name] = path
                return True

    def release(self, name: str) -> None:
        """Give a lease back; one that somebody else took, since this process seemed dead, stays theirs."""
        path = self._taken.pop(name)
        if not self._after(name, self._own.id).exists():
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """A lease that is held for moments: where somebody else has it, it is waited for."""
        while not self.take(name):
            time.sleep(SOON)
        try:
            yield
        finally:
            self.release(name)

    def who(self, name: str) -> Holder | None:
        """Who holds a lease and is alive."""
        path = self._first(name)
        while (holder := self._holder(path)) is not None:
            if (alive := self._alive(holder, path)) is not None:
                return alive
            path = self._after(name, holder)
        return None

    def others(self) -> list[Holder]:
        """All other processes that are alive."""
        found = [self._alive(path.stem, path) for path in self._members()]
        return [one for one in found if one is not None]

    def accompanied(self) -> bool:
        """Whether several processes were here since all that they left was last swept."""
        return (self.folder / COMPANY).exists()

    def sweep(self) -> None:
        """Remove what dead processes left, where no other one is alive that may look at it."""
        if self.others():
            return
        for path in self.folder.glob(f"*{LEASE}"):
            if path not in self._taken.values() and not any(path.name.startswith(name) for name in self._taken):
                path.unlink(missing_ok=True)
        for path in [*self._members(), self.folder / COMPANY]:
            path.unlink(missing_ok=True)

    def _first(self, name: str) -> Path:
        return self.folder / f"{name}{LEASE}"

    def _after(self, name: str, holder: str) -> Path:
        """The file of the one that takes over from a dead holder."""
        return self.folder / f"{name}.{holder}{LEASE}"

    def _file(self, holder: str) -> Path:
        return self.folder / f"{holder}{MEMBER}"

    def _members(self) -> list[Path]:
        """The files of all other processes."""
        return [path for path in self.folder.glob(f"*{MEMBER}") if path.stem != self._own.id]

    def _announce(self) -> None:
        write_file(self._file(self._own.id), json.dumps(asdict(self._own)), name="output")

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError, CheckpointError):  # a disk that is away for a while
                self._now()

    def _now(self) -> float:
        """Touch the own file; the time of the disk."""
        path = self._file(self._own.id)
        try:
            os.utime(path)
        except FileNotFoundError:  # it was taken for dead, and swept
            self._announce()
        return path.stat().st_mtime

    def _holder(self, path: Path) -> str | None:
        """Whose a lease is; None where there is none."""
        require_ordinary(path, name="output")
        try:
            return path.read_text(encoding="ascii", errors="replace") or NOBODY
        except FileNotFoundError:
            return None

    def _alive(self, holder: str, lease: Path) -> Holder | None:
        """A holder that is alive, as far as can be told."""
        path = self._file(holder)
        try:
            facts: dict[str, Any] = parsed(read_text(path), path)
            known = Holder(**facts)
        except (CheckpointError, TypeError, FileNotFoundError):
            # of a lease that is being written nobody knows the holder yet
            known = Holder(id=holder, host="?", machine="", process=0, began=0.0, note="")
            path = lease
            if holder != NOBODY:
                return None
        if known.machine == self._own.machine:
            return known if _runs(known) else None
        try:
            with path.open("rb") as file:  # what is opened is asked of the server, and not of what a client remembers
                touched = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        return known if self._now() - touched < STALE else None


def _runs(holder: Holder) -> bool:
    """Whether a process of this machine is there still."""
    try:
        process = psutil.Process(holder.process)
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return not zombie and bool(abs(process.create_time() - holder.began) < APART)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # of another user
        return True


def _machine() -> str:
    """What numbers the processes that this one can see: a boot, and in it a namespace where the system has those."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text(encoding='ascii').strip()} {os.readlink(space)}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"
