"""The methods and engines that ship, as their source says, for those who only ask: without torch."""

import ast
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ropescale.checks import did_you_mean
from ropescale.errors import UnknownMethodError

METHODS = Path(__file__).parent / "methods"
ENGINES = Path(__file__).parent / "export" / "engines"


class Listed(NamedTuple):
    """A method as `ropescale methods` shows it."""

    knobs: tuple[str, ...]  # with their defaults; one without has to be given
    summary: str


class ListedEngine(NamedTuple):
    """An engine as `ropescale export --help` shows it; the fields are those of `ropescale.export.Engine`."""

    title: str
    summary: str = "a folder in its words"
    called: str = ""
    running: str = ""
    examples: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    plain: bool = False
    suffix: str = ""
    outtypes: tuple[str, ...] = ()


class _Class(NamedTuple):
    bases: tuple[str, ...]
    knobs: dict[str, str]  # name -> as it is shown
    summary: str
    name: str | None  # in the registry


def shipped() -> dict[str, Listed]:
    """Every method of the package by its registry name, in alphabetical order."""
    listed = {
        entry.name: Listed(tuple(_knobs(entry).values()), entry.summary) for entry in _classes().values() if entry.name
    }
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
    there = f"available: {', '.join(names)}"
    given = name.lower() if isinstance(name, str) else ""
    return UnknownMethodError(f"unknown method {name!r}; {did_you_mean(given, names, then=there)}")


def engines() -> dict[str, ListedEngine]:
    """Every engine of the package by its name, and those that a file of a user's has defined in this process."""
    there = sys.modules.get("ropescale.export.engines.base")
    others = {} if there is None else {name: _of_engine(engine) for name, engine in there.ENGINES.items()}
    return {**_shipped_engines(), **others}


def _of_engine(engine: Any) -> ListedEngine:
    return ListedEngine(**{name: getattr(engine, name) for name in ListedEngine._fields})


@cache
def _shipped_engines() -> dict[str, ListedEngine]:
    listed = {}
    for node in _defined(ENGINES):
        if name := _name(node):
            said = {
                item.targets[0].id: ast.literal_eval(item.value)
                for item in node.body
                if isinstance(item, ast.Assign)
                and isinstance(item.targets[0], ast.Name)
                and item.targets[0].id in ListedEngine._fields
            }
            listed[name] = ListedEngine(**{"called": name, **said})
    return dict(sorted(listed.items()))


def _defined(folder: Path) -> Iterator[ast.ClassDef]:
    """The classes in the files below a folder."""
    for path in folder.rglob("*.py"):
        yield from (node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef))


def _name(node: ast.ClassDef) -> str | None:
    """Under which a class is in its registry."""
    return next((ast.literal_eval(word.value) for word in node.keywords if word.arg == "name"), None)


@cache
def _classes() -> dict[str, _Class]:
    return {node.name: _read(node) for node in _defined(METHODS)}


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
        name=_name(node),
    )


def _knobs(entry: _Class) -> dict[str, str]:
    """Its own and those of its bases, in the order of the dataclass."""
    knobs: dict[str, str] = {}
    for base in entry.bases:
        if base in _classes():
            knobs |= _knobs(_classes()[base])
    return knobs | entry.knobs
