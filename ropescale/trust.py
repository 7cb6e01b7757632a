"""Whether Python code that lies in a checkpoint may run. It may not, unless the user has said so in words."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from ropescale.errors import CheckpointError

_TRUSTED = ContextVar("trusted", default=False)
P = ParamSpec("P")
R = TypeVar("R")


def trusted() -> bool:
    """Whether it may within this block: what every loading of a config, tokenizer or model passes on."""
    return _TRUSTED.get()


@contextmanager
def trusting(code: bool) -> Iterator[None]:
    """A block in which it may, or may not."""
    before = _TRUSTED.set(code)
    try:
        yield
    finally:
        _TRUSTED.reset(before)


def takes_trust(work: Callable[P, R]) -> Callable[P, R]:
    """A function within which it may if it is called with `trust_remote_code=True`, its own keyword."""

    @functools.wraps(work)
    def trusted_or_not(*given: P.args, **named: P.kwargs) -> R:
        with trusting(bool(named.get("trust_remote_code", trusted()))):
            return work(*given, **named)

    return trusted_or_not


def is_refusal(error: Exception) -> bool:
    """Whether an error of Transformers says that code would have to run."""
    return isinstance(error, ValueError) and "trust_remote_code=True" in str(error)


def refused(path: str, *, ever: bool = True) -> CheckpointError:
    """The error for a checkpoint that does not load without its own code.

    Args:
        path: where it is.
        ever: whether that code is run where the user says so.
    """
    remedy = (
        "read that code, and only if you would run it give trust_remote_code=True"
        if ever
        else "it is never run here, so give a checkpoint of a family that Transformers knows by itself"
    )
    return CheckpointError(f"{path}: must load without Python code of its own, got one that brings some; {remedy}")
