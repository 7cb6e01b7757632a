"""Disks that are full and permissions that are missing, planted in this very process and seen to be there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

VERSION, PROCESS = 0x20080522, 0  # of the two calls below, from linux/capability.h
OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads and writes everything


@contextlib.contextmanager
def full(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond so many bytes; EFBIG in the place of ENOSPC, to root too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def denied(place: Path, mode: int) -> Iterator[None]:
    """A file or folder with another mode, which holds for root as for anybody else."""
    before = place.stat().st_mode & 0o7777
    with ordinary():
        place.chmod(mode)
        try:
            assert not os.access(place, os.W_OK if mode & 0o400 else os.R_OK, effective_ids=True), "not planted"
            yield
        finally:
            place.chmod(before)


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """What root may besides others is laid down, and taken up again: the permitted capabilities stay."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION, PROCESS)
    held, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    for call, data in ((libc.capget, held), (libc.capget, less)):
        assert call(header, data) == 0, os.strerror(ctypes.get_errno())
    less[0] &= ~OVERRIDES  # the effective ones of the first 32
    assert libc.capset(header, less) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0, os.strerror(ctypes.get_errno())
