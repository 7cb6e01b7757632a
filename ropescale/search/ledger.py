"""What was worked out, each thing once: kept in a file for a search that goes on, and shared by processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ropescale.destinations import append_line, cut_torn_line
from ropescale.errors import CheckpointError, InvalidArgumentError


class Ledger:
    """Results by name, as JSON can hold them, and how long they took.

    Under `accelerate launch` every process has the same ledger: what is missing is shared among them, and the first
    one writes. So what is worked out must depend on its name and on the settings alone.
    """

    def __init__(self, settings: Mapping[str, Any], path: Path | None = None) -> None:
        """A ledger of a file, or one that nobody keeps.

        Raises:
            InvalidArgumentError: a file of other settings.
            CheckpointError: a file that cannot be read or written.
        """
        self.known: dict[str, Any] = {}
        self.path = path
        self.rank, self.world = place()
        self._spent, self._began = 0.0, time.monotonic()
        if path is not None:
            told = [self._read(json.dumps(settings, sort_keys=True)) if self.rank == 0 else None]
            if self.world > 1:
                torch.distributed.broadcast_object_list(told, src=0)
            self.known, self._spent = told[0]  # type: ignore[misc]

    def _read(self, settings: str) -> tuple[dict[str, Any], float]:
        """What the file holds, and the seconds that it took."""
        assert self.path is not None
        cut_torn_line(self.path, name="output")
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            entries = [json.loads(line) for line in lines[1:]]
            known = {one["name"]: one["value"] for one in entries}
            spent = max((float(one["seconds"]) for one in entries), default=0.0)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"output: {str(self.path)!r} must be a file that a search has written, got {error}; remove it, or "
                f"choose another folder with output=DIR"
            ) from error
        if lines and lines[0] != settings:
            raise InvalidArgumentError(
                f"output: must hold a search of the same settings, got {str(self.path.parent)!r}, whose model, "
                f"options, texts or versions are others; choose another folder with output=DIR"
            )
        if not lines:
            append_line(self.path, settings, name="output")
        return known, spent

    @property
    def seconds(self) -> float:
        """How long everything took so far, earlier runs counted; of the first process."""
        told = [self._spent + time.monotonic() - self._began]
        if self.world > 1:
            torch.distributed.broadcast_object_list(told, src=0)
        return told[0]

    def all(self, jobs: Mapping[str, Callable[[], Any]]) -> list[Any]:
        """The results of these names, in their order; what is missing is worked out, one in each process at a time."""
        missing = [name for name in jobs if name not in self.known]
        for begin in range(0, len(missing), self.world):
            some = missing[begin : begin + self.world]
            found = [jobs[some[self.rank]]() if self.rank < len(some) else None]
            if self.world > 1:
                shared: list[Any] = [None] * self.world
                torch.distributed.all_gather_object(shared, found[0])
                found = shared
            seconds = round(self.seconds, 2)
            for name, value in zip(some, found, strict=False):
                self._add(name, value, seconds)
        return [self.known[name] for name in jobs]

    def _add(self, name: str, value: Any, seconds: float) -> None:
        line = json.dumps({"name": name, "value": value, "seconds": seconds})
        self.known[name] = json.loads(line)["value"]  # as whoever goes on will read it
        if self.path is not None and self.rank == 0:
            append_line(self.path, line, name="output")


def place() -> tuple[int, int]:
    """Which process this is, of how many; those that `accelerate launch` or torchrun started find one another."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not torch.distributed.is_initialized():
        PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(weeks=1))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
