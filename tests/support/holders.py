"""Processes that hold leases and die, and holders of another machine."""

import json
import os
import signal
import time
from pathlib import Path

from ropescale.evals.leases import Leases


def forked(folder: Path, *names: str) -> int:
    """A process that has taken leases and waits to be killed; its number."""
    parent = os.getpid()
    reading, writing = os.pipe()
    number = os.fork()
    if not number:
        with Leases(folder, note="same") as held:
            told = all(held.take(name) for name in names)
            os.write(writing, b"y" if told else b"n")
            while os.getppid() == parent:  # a test that failed kills nobody
                time.sleep(0.2)
            os._exit(1)
    assert os.read(reading, 1) == b"y"
    os.close(reading), os.close(writing)
    return number


def elsewhere(path: Path, **facts: object) -> None:
    """Make the holder of a file one of another machine."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "another", **facts}))


def killed(number: int) -> None:
    """It is not waited for: what is left of it has its number still."""
    os.kill(number, signal.SIGKILL)
    os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
