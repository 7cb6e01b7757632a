"""Processes that end with the one that started them, whatever ends it.

An engine that serves has processes of its own, and they go on where the process that asks them is killed: with the
memory of a device, for ever. Linux can tie a process to its parent, but only at that process's own wish
(PR_SET_PDEATHSIG), and these are started by vLLM. So another one looks on, and ends them.

This file is also the program of that one; it imports nothing of ropescale.

    python -P watch.py PROCESS PROCESS-TO-LEAVE ...
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

# Seconds between two looks. An engine that is younger than that when its parent is killed is not known; it has loaded
# nothing yet, and ends by itself when the parent has not answered for five minutes (HANDSHAKE_TIMEOUT_MINS of vLLM
# 0.32.0)
LOOK = 1.0
PATIENCE = 10.0  # seconds in which they may end by themselves, and give back what they hold


@contextmanager
def ending_together() -> Iterator[None]:
    """What this process starts within the block ends when this process does, also if it is killed."""
    before = [str(one.pid) for one in psutil.Process().children(recursive=True)]
    command = [sys.executable, "-P", __file__, str(os.getpid()), *before]
    # a session of its own: what is sent to all processes of a terminal would end it first
    watch = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        watch.kill()
        watch.wait()


def _watch(number: int, before: set[int]) -> None:
    """Remember what a process starts besides those that it had before, and end it after that process."""
    apart = {os.getpid(), *before}
    started: set[psutil.Process] = set()
    while os.getppid() == number:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile, which the next look sees
            started |= {one for one in psutil.Process(number).children(recursive=True) if one.pid not in apart}
        time.sleep(LOOK)
    _, left = psutil.wait_procs(started, timeout=PATIENCE)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()


if __name__ == "__main__":
    _watch(int(sys.argv[1]), {int(number) for number in sys.argv[2:]})
