"""What a caller gives, checked and refused in one form; pure.

`what` is the sentence up to its verb: "layers:" for an argument of its own, "yarn: ramp" for a knob of a method.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

from ropescale.errors import InvalidArgumentError, shortened


def as_float(value: object) -> float:
    """A caller's number as a float: nan where it is none, infinite where its magnitude is too large for one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_whole(value: object, at_least: float = -math.inf, at_most: float = math.inf) -> TypeGuard[int]:
    """Whether a value is a whole number within bounds; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= at_most


def require_whole(
    what: str, value: object, at_least: float, at_most: float = math.inf, *, rule: str, remedy: str
) -> None:
    """Check a whole number.

    Raises:
        InvalidArgumentError: none, or one beyond the bounds, which the rule says.
    """
    if not is_whole(value, at_least, at_most):
        raise InvalidArgumentError(f"{what} must be {rule}, got {shortened(value)}; {remedy}")


def require_at_least(what: str, value: float | None, least: float) -> None:
    """Check a number that stands in for a default where it is None.

    Raises:
        InvalidArgumentError: less.
    """
    if value is not None and not as_float(value) >= least:  # which a number that is none is not either
        raise InvalidArgumentError(
            f"{what} must be at least {least}, got {shortened(value)}; leave it out for the default"
        )


def require_choice(what: str, value: object, choices: Iterable[str], *, remedy: str) -> None:
    """Check a name that is one of a few.

    Raises:
        InvalidArgumentError: none of them.
    """
    choices = tuple(choices)
    if value not in choices:
        raise InvalidArgumentError(f"{what} must be one of {', '.join(choices)}, got {value!r}; {remedy}")


def require_flag(what: str, value: object, *, default: bool) -> None:
    """Check what is True or False.

    Raises:
        InvalidArgumentError: anything else.
    """
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{what} must be True or False, got {shortened(value)}; leave it out for {default}")


def require_path(what: str, value: object) -> None:
    """Check the path of a file or folder.

    Raises:
        InvalidArgumentError: no text and no Path, one of nothing, or one with a zero in it, which no system takes.
    """
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise InvalidArgumentError(
            f"{what} must be the path of a folder or file, got {shortened(value)}; give a path as text or a Path"
        )


def several(what: str, values: object, kind: type | tuple[type, ...], kinds: str) -> tuple[Any, ...]:
    """What stands in a sequence, all of it of one kind: a text is no sequence of texts, and True is no number.

    Raises:
        InvalidArgumentError: no sequence, or something else in it.
    """
    found: tuple[Any, ...] | None = None
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping)):
        found = tuple(values)
    if found is None or any(not isinstance(one, kind) or isinstance(one, bool) for one in found):
        raise InvalidArgumentError(
            f"{what} must hold {kinds}, got {shortened(values)}; put them in brackets, a single one too"
        )
    return found


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The name that a misspelt one may stand for; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], *, what: str = "", otherwise: str = "", then: str = "") -> str:
    """The question after a misspelt name: where no name is near, what is said otherwise; then what is always said."""
    near = nearest(name, known)
    guess = otherwise if near is None else f"did you mean {what}{near!r}?"
    return f"{guess} {then}".strip()
