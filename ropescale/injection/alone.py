"""The thread that changes a model is alone with it.

A model is neither as before nor as after while a patch is put in, proven or taken out. Passes of other threads that
have begun are waited for, those that would begin wait, and so each sees one model from its beginning to its end.

Which passes have begun is read from the frames of all threads, so that nothing has to be noted while nobody patches.
"""

import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, MethodType
from typing import Any

import torch
from torch import nn

from ropescale.errors import BusyModelError

PATIENCE = 10.0  # seconds within which passes that have begun must end
STALLED = 30.0  # seconds without a step of the thread that patches, after which others no longer wait for it
CALL = "_compiled_call_impl"  # attribute of a module that torch looks up first of all whenever the module is called
VERBS = ("generate", "generate_batch", "save_pretrained")  # of a model, which have to see one model in whole as well
# Functions that a pass runs in, by name; with "wrapper" begins a `forward` of Transformers that is called by itself
PASSES = frozenset({"__call__", "_wrapped_call_impl", "_call_impl", "forward", "wrapper", *VERBS})
BROKEN_OFF = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

# One change at a time in a process: two threads never meet in the middle of a model
_TURN = threading.RLock()
_CHANGING = threading.RLock()  # held only while a model is neither as before nor as after


class _Hold:
    """A hold on a lock, let go once however often that is asked for; each step is one line, or none of it."""

    def __init__(self, lock: Any) -> None:
        self._lock, self._held = lock, False

    def take(self) -> None:
        self._held = self._lock.acquire()

    def leave(self) -> None:
        self._held = self._held and bool(self._lock.release())


@contextmanager
def _held(lock: Any) -> Iterator[None]:
    """Within the block the lock is held. An interruption may strike at its release, which is why it is asked twice."""
    hold = _Hold(lock)
    try:
        try:
            hold.take()
            yield
        finally:
            hold.leave()
    finally:
        hold.leave()


def in_turn() -> AbstractContextManager[None]:
    """While the block runs, no other thread begins to change a model; may be nested."""
    return _held(_TURN)


def settled() -> AbstractContextManager[None]:
    """While the block runs, every model is as before a change or as after it."""
    return _held(_CHANGING)


@contextmanager
def alone(model: nn.Module) -> Iterator["_Gate"]:
    """While the block runs, no other thread reads this model, whole or in part, by itself or within a wrapper.

    The gate that is given keeps what stands in the place of the verbs that it holds up.

    Passes of this thread itself are its own affair: a hook may patch the model that runs it.

    Raises:
        BusyModelError: passes of other threads did not end; nothing was changed.
    """
    with in_turn():
        gate = _Gate(model)
        try:
            try:
                gate.close()
                with settled():
                    yield gate
            finally:
                gate.open()
        finally:  # an interruption may have come before the gate stood open
            gate.open()


class _Gate:
    """Where other threads wait before they enter a model."""

    def __init__(self, model: nn.Module) -> None:
        self._owner = threading.get_ident()
        self._modules = list(model.modules())
        self._own = set(self._modules)
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []  # attributes, name, what was there
        self._counted = threading.Event()
        self._opened = threading.Event()
        self._passes: dict[int, FrameType] = {}  # thread -> the outermost frame of its pass
        self._moved = time.monotonic()  # when the owner took its last step

    def close(self) -> None:
        """Let nobody in any more, and wait for those who are in.

        Raises:
            BusyModelError: they do not come out.
        """
        if "torch._dynamo" in sys.modules:  # a pass that is compiled comes through here as it stands
            for function in (_Gate.called, _Gate.enter, _Gate._is_in):
                torch._dynamo.decorators.skip(function)
        for module in self._modules:
            self._replace(module, CALL, functools.partial(self.called, module, module._compiled_call_impl))
            for verb in VERBS:
                if hasattr(type(module), verb):
                    # bound as methods are: a copy of the model that is made meanwhile has it of its own
                    self._replace(module, verb, MethodType(self._after_entering(verb, vars(module).get(verb)), module))
        for thread in sys._current_frames():
            root = self._root(thread) if thread != self._owner else None
            if root is not None:
                self._passes[thread] = root
        self._counted.set()  # whoever is not among these has not got past the gate
        self._await_passes()
        self._moved = time.monotonic()

    def open(self) -> None:
        """Let everybody in; may be called again after an interruption."""
        if self._opened.is_set():
            return
        for attributes, name, before in self._replaced:
            if before is self:
                attributes.pop(name, None)
            else:
                attributes[name] = before
        for held in (self._replaced, self._modules, self._own, self._passes):
            held.clear()  # frames keep alive whatever they hold, and modules their weights
        self._counted.set()
        self._opened.set()

    def kept(self, module: nn.Module, name: str) -> Any:
        """What is to stand again at this name of a module once the gate is open; None for what its class says."""
        found = [value for attributes, known, value in self._replaced if attributes is vars(module) and known == name]
        return None if not found or found[0] is self else found[0]

    def keep(self, module: nn.Module, name: str, value: Any) -> None:
        """Have something else stand there once the gate is open; None for what the class says."""
        for place, (attributes, known, _) in enumerate(self._replaced):
            if attributes is vars(module) and known == name:
                self._replaced[place] = (attributes, name, self if value is None else value)

    def called(self, module: nn.Module, compiled: Callable[..., Any] | None, /, *args: Any, **kwargs: Any) -> Any:
        """Stands in the place of a module's call."""
        if threading.get_ident() == self._owner:
            self._moved = time.monotonic()
        else:
            # DataParallel copies a module's attributes to replicas, which run within a pass in threads of their own
            caller = sys._getframe(1).f_locals.get("self")
            if getattr(caller, "_is_replica", False):
                return caller._call_impl(*args, **kwargs)  # type: ignore[union-attr]
            self.enter()
        return (compiled or module._call_impl)(*args, **kwargs)

    def enter(self) -> None:
        """Wait until the gate is open, unless this thread is in already.

        Raises:
            BusyModelError: the owner has stopped; it may be waiting for this thread.
        """
        if threading.get_ident() == self._owner:
            return
        self._counted.wait()
        if self._is_in():
            return
        while not self._opened.wait(min(STALLED, 1.0)):
            if time.monotonic() - self._moved > STALLED:
                raise BusyModelError(
                    f"model: must not be read by a thread for which ropescale.patch or unpatch of another thread "
                    f"waits, got a patch that has not gone on for {STALLED:g} seconds; start such threads after it"
                )

    def _replace(self, module: nn.Module, name: str, value: Any) -> None:
        attributes = vars(module)
        self._replaced.append((attributes, name, attributes.get(name, self)))
        attributes[name] = value

    def _after_entering(self, verb: str, own: Callable[..., Any] | None) -> Callable[..., Any]:
        """A method that waits for the gate before it does what the class says, or an attribute of the model's own."""

        def entered(model: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            self.enter()
            return own(*args, **kwargs) if own else getattr(type(model), verb)(model, *args, **kwargs)

        return entered

    def _is_in(self) -> bool:
        """Whether the calling thread is within a pass that had begun when the gate closed."""
        root = self._passes.get(threading.get_ident())
        frame: FrameType | None = sys._getframe() if root is not None else None
        while frame is not None and frame is not root:
            frame = frame.f_back
        return frame is not None

    def _await_passes(self) -> None:
        began, pause = time.monotonic(), 1e-4
        while True:
            for thread, root in list(self._passes.items()):
                if all(frame is not root for frame in _stack(thread)):
                    del self._passes[thread]
            if not self._passes:
                return
            if time.monotonic() - began > PATIENCE:
                raise BusyModelError(
                    f"model: must be idle to be patched or unpatched, got a pass, a generation or a saving in "
                    f"{_names(self._passes)} that has not ended in {PATIENCE:g} seconds; wait until it has, and patch "
                    f"before the model serves"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def _root(self, thread: int) -> FrameType | None:
        """The outermost frame in which a thread reads this model, if it does."""
        for frame in reversed(_stack(thread)):
            if frame.f_code.co_name in PASSES and frame.f_code.co_varnames[:1] == ("self",):
                reader = frame.f_locals.get("self")
                if isinstance(reader, nn.Module) and not self._own.isdisjoint(reader.modules()):
                    return frame
        return None


def _stack(thread: int) -> list[FrameType]:
    """The frames of a thread, innermost first, while it runs on.

    A frame that has been left still knows its caller, so what is found is a stack that was. Only a generator that has
    yielded meanwhile has no caller any more: a stack that ends in one is read again.
    """
    frames: list[FrameType] = []
    for _ in range(100):  # a thread that another language began may truly end in one
        frame = sys._current_frames().get(thread)
        frames = []
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        if not frames or not frames[-1].f_code.co_flags & BROKEN_OFF:
            break
    return frames


def _names(threads: dict[int, Any]) -> str:
    known = {thread.ident: thread.name for thread in threading.enumerate()}
    return ", ".join(sorted(f"thread {known.get(ident, str(ident))!r}" for ident in threads))
