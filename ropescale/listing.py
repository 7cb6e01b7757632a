"""The methods that ship, as their source says: names, knobs and summaries for those who only ask, without torch."""

import ast
import dataclasses
import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ropescale.errors import UnknownMethodError

METHODS = Path(__file__).parent / "methods"


class Listed(NamedTuple):
    """A method as `ropescale methods` shows it."""

    knobs: tuple[str, ...]  # with their defaults; one without has to be given
    summary: str


class _Class(NamedTuple):
    bases: tuple[str, ...]
    knobs: dict[str, str]  # name -> as it is shown
    summary: str
    name: str | None  # in the registry


def shipped() -> dict[str, Listed]:
    """Every method of the package by its registry name, in alphabetical order."""
    listed = {one.name: Listed(tuple(_knobs(one).values()), one.summary) for one in _classes().values() if one.name}
    return dict(sorted(listed.items()))


def common_knobs() -> tuple[str, ...]:
    """What every method with fixed frequencies takes."""
    return tuple(_knobs(_classes()["FixedMethod"]).values())


def of_class(method: Any) -> Listed:
    """The same of a method class that is defined elsewhere."""
    knobs = [
        item.name if item.default is dataclasses.MISSING else f"{item.name}={item.default!r}"
        for item in dataclasses.fields(method)
    ]
    return Listed(tuple(knobs), (method.__doc__ or "").strip().partition("\n")[0])


def unknown_method(name: object, available: Iterable[str]) -> UnknownMethodError:
    """The error for a name that is none of a method; names what is near and what there is."""
    names = sorted(available)
    near = difflib.get_close_matches(name.lower(), names, n=1) if isinstance(name, str) else []
    guess = f"did you mean {near[0]!r}? " if near else ""
    return UnknownMethodError(f"unknown method {name!r}; {guess}available: {', '.join(names)}")


@cache
def _classes() -> dict[str, _Class]:
    trees = [ast.parse(path.read_bytes()) for path in METHODS.rglob("*.py")]
    return {node.name: _read(node) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _read(node: ast.ClassDef) -> _Class:
    fields = [
        item
        for item in node.body
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.annotation).startswith("ClassVar")
    ]
    names = [ast.unparse(item.target) for item in fields]
    defaults = [f"={ast.unparse(item.value)}" if item.value else "" for item in fields]
    return _Class(
        bases=tuple(base.id for base in node.bases if isinstance(base, ast.Name)),
        knobs={name: name + default for name, default in zip(names, defaults, strict=True)},
        summary=(ast.get_docstring(node) or "").partition("\n")[0],
        name=next((ast.literal_eval(word.value) for word in node.keywords if word.arg == "name"), None),
    )


def _knobs(one: _Class) -> dict[str, str]:
    """Its own and those of its bases, in the order of the dataclass."""
    knobs: dict[str, str] = {}
    for base in one.bases:
        if base in _classes():
            knobs |= _knobs(_classes()[base])
    return knobs | one.knobs
