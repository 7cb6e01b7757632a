"""Python files of a user's own, run by `ropescale --import FILE` so that what they define is known to every verb."""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from ropescale.errors import InvalidArgumentError, RopescaleError

TASKS = "task.py"  # what defines the tasks of a folder

_RUN: list[str] = []  # as they were given, for the commands that may come next


def options() -> list[str]:
    """What a command has to begin with to know the same."""
    return [word for path in _RUN for word in ("--import", path)]


def run_files(paths: Iterable[str]) -> None:
    """Run each file as a module of its own name, once, in order.

    Raises:
        InvalidArgumentError: no Python file, the name of a module that is there already, or a file that fails.
        RopescaleError: whatever defining a method raises.
    """
    _RUN.clear()
    for given in paths:
        path = Path(given)
        if path.suffix != ".py" or not path.is_file():
            raise InvalidArgumentError(
                f"file to import: must be a Python file that defines methods, tasks or engines, got "
                f"{str(path)!r}; give the path of a .py file"
            )
        # of tasks each folder has a task.py
        run_file(path, name=path.stem if path.name != TASKS else f"task in {path.resolve().parent}")
        _RUN.append(given)


def run_file(path: Path, *, name: str, what: str = "file to import") -> None:
    """Run a file as a module of that name, unless it is there already; `what` begins the sentence where that fails.

    Raises:
        InvalidArgumentError: the name of another module, or a file that fails.
        RopescaleError: whatever defining a method or a task raises.
    """
    if (there := sys.modules.get(name)) is not None:
        if Path(getattr(there, "__file__", None) or "").absolute() == path.absolute():
            return
        raise InvalidArgumentError(f"{what}: must have a name that no module has, got {str(path)!r}; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, RopescaleError):
            raise
        raise InvalidArgumentError(
            f"{what}: must be a Python file that runs, got {str(path)!r}, which ends with "
            f"{type(error).__name__}: {error}; correct it, python {path} shows where"
        ) from error
