"""The arms of an evaluation as checkpoints that an engine serves, one after another.

Each is written in the engine's words into a temporary folder, without a copy of the weights, and is gone when its
cells are done. This room writes and removes; `served_engine.py` runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ropescale.adapter_files import record_of
from ropescale.contents import read_config
from ropescale.errors import ExportError, InvalidArgumentError
from ropescale.evals.engine import vllm_model
from ropescale.evals.plan import Options, Plan
from ropescale.evals.results import Arm
from ropescale.evals.watch import ending_together
from ropescale.export.writing import held, linked
from ropescale.extension import extended
from ropescale.families.layers import layers_meant
from ropescale.families.parts import text_of
from ropescale.records import Record, saved_record
from ropescale.request import Request

if TYPE_CHECKING:
    from ropescale.evals.served_engine import ServedLM

PREFIX = "ropescale-arm-"  # of the folders
LOCK = ".lock"  # in each, held as long as its arm is served
YOUNG = 60.0  # seconds in which a folder may not have its lock yet


class Served:
    """A checkpoint whose arms are served in turn.

    Raises:
        InvalidArgumentError: an arm that the engine does not hold, or a length that it does not serve.
    """

    def __init__(self, options: Options, path: str, plan: Plan):
        self._options, self._path, self._plan = options, path, plan
        self._reaches = {arm: self._held(arm) for arm in options.arms}

    def reach(self, arm: Arm) -> int:
        """Tokens that the model reads as this arm."""
        return self._reaches[arm]

    def record(self, arm: Arm) -> Record | None:
        """What was done to the model."""
        text = text_of(read_config(self._path))
        request, adapter = self._asked(arm)
        if request is not None:
            return extended(text, request).record
        trained = None if adapter is None else record_of(adapter)
        return saved_record(text) if trained is None else trained

    @contextmanager
    def folder(self, arm: Arm) -> Iterator[Path]:
        """An arm as a checkpoint, as long as the block runs.

        What a run that was killed left of such folders is removed first.

        Raises:
            CheckpointError: it cannot be written.
        """
        _sweep()
        request, adapter = self._asked(arm)
        place = Path(tempfile.mkdtemp(prefix=PREFIX))
        with FileLock(place / LOCK):
            try:
                linked(self._path, place / "arm", request, to="vllm", length=self.reach(arm), adapter=adapter)
                yield place / "arm"
            finally:
                shutil.rmtree(place)

    @contextmanager
    def serving(self, arm: Arm, thought: Mapping[str, Any]) -> Iterator[ServedLM]:
        """An arm in vLLM, loaded once, as long as the block runs.

        Args:
            arm: one of the options'.
            thought: what its language-model class has to know of thinking.

        Raises:
            CheckpointError: it cannot be written, or vLLM does not load it.
        """
        with self.folder(arm) as folder, ending_together():
            lm = vllm_model(
                str(folder),
                tokenizer=self._path,  # that of all arms, whatever lies with an adapter
                length=self.reach(arm),
                dtype=self._options.dtype_name,
                **thought,
                **self._options.engine_args,
            )
            try:
                yield lm
            finally:
                lm.close()

    def _asked(self, arm: Arm) -> tuple[Request | None, str | None]:
        """What extends the checkpoint, and the adapter that is merged into it, for an arm."""
        adapter = self._options.trained.get(arm)
        said = arm.unextended or (adapter is not None and record_of(adapter) is not None)
        return (None if said else self._options.request(arm)), adapter

    def _held(self, arm: Arm) -> int:
        """Tokens that an arm is read to: of the model as it is those that are asked for, if all that it could is more.

        Raises:
            InvalidArgumentError: the engine does not hold it, or does not serve as many.
        """
        request, adapter = self._asked(arm)
        text = text_of(read_config(self._path))
        trained = None if adapter is None else record_of(adapter)
        if trained is not None and saved_record(text) is None:
            request = Request.again(trained, layers=layers_meant(trained, text))
        made_for = int(arm.factor * self._plan.original_length)
        reach = self._plan.reach(arm) if arm.unextended else made_for
        asked = max(self._plan.lengths) if arm.unextended else made_for
        try:
            held(self._path, request, to="vllm", length=asked)
        except ExportError as error:
            why, _, remedy = str(error).partition("; ")
            if "lengths must" in why:
                raise InvalidArgumentError(f"eval: {why}; {remedy}") from error
            raise InvalidArgumentError(
                f"eval: methods must be ones that the backend holds, got {arm.label} with vllm ({why}); run it with "
                f"backend transformers, in a folder of its own (output=DIR)"
            ) from error
        try:
            held(self._path, request, to="vllm", length=reach)
        except ExportError:
            return asked
        return reach


def _sweep() -> None:
    """Remove the folders of runs that were killed: those of this user whose lock nobody holds."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # its run has ended meanwhile
            state = place.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or time.time() - state.st_mtime < YOUNG:
                continue
            lock = FileLock(place / LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                shutil.rmtree(place)
            finally:
                lock.release()
