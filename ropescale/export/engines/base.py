"""Engine: what serves an export; and the registry where all are found by name."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ropescale.checks import require_choice
from ropescale.errors import InvalidArgumentError
from ropescale.export import folder
from ropescale.export.canonical import Canonical, Rotation
from ropescale.export.reads import require_read
from ropescale.export.running import Prompt, Run
from ropescale.export.source import Source
from ropescale.export.stated import Stated
from ropescale.export.subject import Subject, of_folder
from ropescale.registry import entered

ENGINES: dict[str, "Engine"] = {}  # by their names


class Engine:
    """What serves an export: what it is called, what it is told, what its classes leave out, and how it is run.

    Defining a subclass registers it. The least is a title and `state`; one with `run` is verified too:

        class Mine(Engine, name="mine"):
            title = "Mine"

            def state(self, config, canonical): ...

            def run(self, path, flags, prompts, steps): ...
    """

    name: ClassVar[str]  # what `export` takes
    abstract: ClassVar[bool] = True  # a kind of engine, which has no name; each class says so for itself
    title: ClassVar[str]  # as it writes itself
    summary: ClassVar[str] = "a folder in its words"  # what is written for it, for `ropescale export --help`
    called: ClassVar[str] = ""  # what `verify` takes, where that is not its name
    running: ClassVar[str] = ""  # what `verify` runs, for `ropescale verify-export --help`; empty where it is not run
    examples: ClassVar[tuple[str, ...]] = ()  # of `ropescale export`, without those two words
    checks: ClassVar[tuple[str, ...]] = ()  # of `ropescale verify-export`, likewise
    verified: ClassVar[str] = ""  # the version in which its rules were read and, where it is run, run

    suffix: ClassVar[str] = ""  # of the one file that it takes; empty where it takes a folder
    outtypes: ClassVar[tuple[str, ...]] = ()  # that matrices can be stored in; empty where weights are copied
    extra: ClassVar[str] = ""  # of ropescale, that brings its packages
    program: ClassVar[str] = ""  # what serves an export, with {} for the place
    trial: ClassVar[str] = ""  # what a user does next with one that was verified, if not to chat
    plain: ClassVar[bool] = False  # takes every folder that says of itself nothing else
    every_head: ClassVar[bool] = True  # serves classifiers and embedding models too
    every_part: ClassVar[bool] = True  # reads a rotation for each layer type
    # families of models that see images within which it reads a text decoder; None for all that it has
    wholes: ClassVar[frozenset[str] | None] = None
    instead: ClassVar[str] = ""  # what to do with one that it does not read, if not another engine
    reads: ClassVar[Mapping[str, frozenset[str]]] = {}  # by family, the rope types that its class reads, if not all

    # The largest difference of any log-probability that is rounding of float32, which grows with length
    tolerance: ClassVar[float] = 1e-3
    near: ClassVar[float] = math.inf  # the same after prompts of some hundred tokens, where it is smaller
    merged: ClassVar[float] = 1e-3  # the same of weights that an adapter was added into: the sum rounds once more
    by_token: ClassVar[bool] = False  # held against the model token by token, for it is the same code

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("abstract", False):
            return
        cls.abstract = False
        cls.name = entered("engine", cls, name, {known: type(engine) for known, engine in ENGINES.items()})
        cls.called = cls.__dict__.get("called", cls.name)
        if cls.run is not Engine.run and not cls.running:
            cls.running = f"the export in {cls.title}"
        ENGINES[cls.name] = cls()

    def state(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        """What it is told, in the entries of config.json; those of the text decoder, whose config it is given.

        Raises:
            ExportError: a rotation that it cannot hold.
        """
        raise NotImplementedError(f"{type(self).__qualname__}: state must be defined")

    def reads_of(self, family: str, rope: Mapping[str, Any]) -> frozenset[str] | None:
        """The rope types that its class of a family reads beside these parameters; None for all."""
        return self.reads.get(family)

    def leaves_out(self, family: str, rotation: Rotation, rope: Mapping[str, Any]) -> bool:
        """Whether its class of a family knows a rope type, but not all that these parameters say."""
        return False

    def overrides(self, stated: Stated, target: int, limit: float) -> tuple[str, str]:
        """What has it treat the unmodified checkpoint alike: what stands before its program, and behind.

        Args:
            stated: what it is told.
            target: tokens.
            limit: tokens that the tokenizer's own settings allow.
        """
        return "", ""

    def require(self, destination: Path, outtype: str | None) -> None:
        """Refuse a destination or a type of weights that it has not, before anything is read.

        Raises:
            InvalidArgumentError: such a one.
        """
        if outtype is not None and not self.outtypes:
            raise InvalidArgumentError(
                f"outtype: must be left out for {self.name}, got {outtype!r}; weights are copied as they are"
            )
        if self.suffix and destination.suffix != self.suffix:
            raise InvalidArgumentError(
                f"destination: must be a file name that ends in {self.suffix}, got {str(destination)!r}; give one, "
                f"such as {str(destination / f'model{self.suffix}')!r}"
            )

    def write(self, destination: Path, source: Source, canonical: Canonical, outtype: str | None) -> Stated:
        """Write the model, whole or not at all; returns what the engine is told.

        Raises:
            CheckpointError: a broken source, or a destination that cannot be written.
            ExportError: what the engine cannot hold.
        """
        stated = self.held(source.text, canonical)
        folder.write(destination, source, stated, canonical, self.name)
        return stated

    def held(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        """What it is told, where it holds that exactly; weights stay unread, and nothing is written.

        Raises:
            ExportError: what the engine cannot hold.
        """
        stated = self.state(config, canonical)
        require_read(self, config, canonical, stated.fields["rope_parameters"])
        return stated

    def subject(self, path: Path) -> Subject:
        """What was written for it, with what that says about itself.

        Raises:
            CheckpointError: no export there, or one that cannot be read.
            InvalidArgumentError: it was written for another engine.
        """
        written = next(engine.name for engine in ENGINES.values() if engine.plain)  # where nothing says for which
        return of_folder(path, self.name, written, self.run)

    def run(self, path: Path, flags: Sequence[str], prompts: Sequence[Prompt], steps: int) -> list[Run]:
        """What it generates from each prompt, greedily and in float32.

        Args:
            path: what was written for it.
            flags: that it needs to serve the target length.
            prompts: token ids.
            steps: tokens to generate from each.

        Raises:
            CheckpointError: it does not load the export.
            ExportError: it is not there, or fails.
        """
        raise NotImplementedError(f"{type(self).__qualname__}: not run here")


def engine_of(name: str) -> Engine:
    """The engine of that name.

    Raises:
        InvalidArgumentError: none.
    """
    require_choice("to:", name, sorted(ENGINES), remedy="name an engine")
    return ENGINES[name]


def run_as(called: str) -> Engine:
    """The engine that verification runs by that name.

    Raises:
        InvalidArgumentError: none.
    """
    run = {engine.called: engine for engine in ENGINES.values() if engine.running}
    require_choice("engine:", called, sorted(run), remedy="the others are not run here")
    return run[called]


def able() -> str:
    """The names of those that hold every rotation and were seen to, for a sentence."""
    return " or ".join(sorted(engine.name for engine in ENGINES.values() if engine.every_part and engine.running))
