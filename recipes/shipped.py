"""The recipes that are shipped, by name, and the file of any: answered without the packages that training needs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ropescale.checks import did_you_mean
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.files import read_text as read_file

LARGEST = 2**20  # bytes of a recipe


def comment(name: str) -> str:
    """What a recipe's file says at its top."""
    lines = read_text(name).splitlines()
    return " ".join(line.strip("# ") for line in lines[: next(i for i, x in enumerate([*lines, ""]) if x[:1] != "#")])


def list_recipes() -> dict[str, str]:
    """Every recipe that is shipped, with the first line of its comment."""
    recipes = {}
    for entry in sorted(files("ropescale.recipes").iterdir(), key=lambda file: file.name):
        if entry.name.endswith(".yaml"):
            recipes[entry.name.removesuffix(".yaml")] = (
                entry.read_text(encoding="utf-8").partition("\n")[0].strip("# ")
            )
    return recipes


def read_text(name: str) -> str:
    """A recipe's file.

    Raises:
        InvalidArgumentError: no such recipe.
    """
    if name in list_recipes():
        return files("ropescale.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        try:
            return read_file(Path(name), largest=LARGEST, remedy="give a recipe")
        except CheckpointError as error:
            fault = type(error.__cause__).__name__ if error.__cause__ else "no file, or one of more than a recipe"
            raise InvalidArgumentError(
                f"recipe: {name!r} must be a UTF-8 text that can be read, got {fault}; correct the file"
            ) from error
    remedy = did_you_mean(name, list_recipes(), then="see `ropescale train --list`")
    raise InvalidArgumentError(
        f"recipe: must be one of {', '.join(list_recipes())}, or a path to a .yaml file, got {name!r}; {remedy}"
    )
