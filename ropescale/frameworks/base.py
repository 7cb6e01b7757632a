"""Framework: what trains a model by settings of its own; and the registry where all are found by name."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ropescale.export import ENGINES
from ropescale.registry import entered

FRAMEWORKS: dict[str, "Framework"] = {}  # by their names


class Framework:
    """What trains a model: where it takes a scaling from, and what it makes of other places.

    Defining a subclass registers it. Its rules are those of one commit, which it names.
    """

    name: ClassVar[str]  # what `flags` takes
    title: ClassVar[str]  # as it writes itself
    read: ClassVar[str]  # the commit in which its rules were read, and its day
    misreads: ClassVar[tuple[str, ...]]  # what it reads otherwise than it says, a sentence each
    instead: ClassVar[str]  # what to do with a method that no config states

    def __init_subclass__(cls, *, name: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = entered("framework", cls, name, {known: type(one) for known, one in FRAMEWORKS.items()})
        FRAMEWORKS[cls.name] = cls()

    def states(self, fields: Mapping[str, Any]) -> bool:
        """Whether its own settings can say these entries of config.json; otherwise it is given a folder that does."""
        return False

    def settings(self, model: str, fields: Mapping[str, Any] | None, length: int) -> str:
        """What is written into its settings.

        Args:
            model: the checkpoint, or the folder that states the scaling.
            fields: entries of config.json that state it; None where the folder does.
            length: tokens.
        """
        raise NotImplementedError(f"{type(self).__qualname__}: settings must be defined")

    def engine(self) -> str:
        """For which the folder is written that it is given."""
        return next(engine.name for engine in ENGINES.values() if engine.plain)


def in_own_loop(title: str) -> str:
    """What to do where a framework has no place for a live model."""
    return f"use ropescale train, or a trainer of your own (docs/trainers.md), in the place of {title}"
