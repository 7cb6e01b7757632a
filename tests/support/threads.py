"""Threads that read a model, held in the middle of a pass."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import ropescale

STATIC = ("yarn", {"factor": 4})
LATE = ("self_extend", {"group_size": 4, "window": 16})
IDS = torch.arange(3, 103)[None]
LONG = 60.0  # seconds after which a test is stuck
SHORT = 0.3  # seconds that another thread is given to do what it must not do


@torch.no_grad()
def forward(model: Any) -> Tensor:
    output = model(IDS)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def generation(model: Any) -> Tensor:
    """The logits of every step."""
    asked = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "output_logits": True}
    found = model.generate(IDS[:, :70], return_dict_in_generate=True, **asked)
    return torch.stack(found.logits)


def both(model: nn.Module, read: Callable[[], Tensor], method: str, knobs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What is read of an unpatched model, and of the patched one."""
    before = read()
    with ropescale.patched(model, method, **knobs):
        after = read()
    assert not torch.equal(before, after)
    return before, after


class Thread:
    """Work in another thread, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(work,), name="reader", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        torch.set_num_threads(1)
        try:
            self._found.append(work())
        except BaseException as error:
            self._found.append(error)

    def answer(self) -> Any:
        self._thread.join(LONG)
        assert not self._thread.is_alive(), "stuck"
        return self._found[0]


class Pause:
    """A hook that stops the first pass of another thread in the middle of the model."""

    def __init__(self, module: nn.Module) -> None:
        self.reached, self.on = threading.Event(), threading.Event()
        self._owner = threading.get_ident()
        self._hook = module.register_forward_hook(self._stop)

    def __deepcopy__(self, _: Any) -> "Pause":
        return self

    @torch.compiler.disable
    def _stop(self, *_: Any) -> None:
        if threading.get_ident() != self._owner and not self.reached.is_set():
            self.reached.set()
            assert self.on.wait(LONG)


@contextmanager
def paused(model: nn.Module, read: Callable[[], Tensor]) -> Iterator[tuple[Thread, Pause]]:
    """A pass of another thread that has read the first of two layers."""
    pause = Pause(model.get_submodule("model.layers.0"))
    reader = Thread(read)
    assert pause.reached.wait(LONG)
    try:
        yield reader, pause
    finally:
        pause.on.set()
        reader.answer()
        pause._hook.remove()


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model
