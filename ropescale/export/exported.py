"""What an export comes to, for whoever asked for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropescale.export.canonical import Canonical
from ropescale.export.engines.base import ENGINES, Engine
from ropescale.export.stated import Stated


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how long the engine will serve it."""

    path: Path
    to: str
    method: str  # in words
    form: str  # how the engine was told, in words
    serves: int  # tokens
    target_length: int  # tokens
    flags: tuple[str, ...] = ()  # that the engine needs to serve the target length
    approximation: str = ""  # what is not exact; empty where everything is
    overrides: str = ""  # flags for an unmodified checkpoint; empty where the engine has none, or weights are merged
    commands: tuple[str, ...] = ()  # what serves it, as a shell takes it
    unmodified: str = ""  # the command that serves the unmodified checkpoint alike, as a shell takes it
    verifying: str = ""  # the command that runs the engine and compares, as a shell takes it
    lacking: str = ""  # what an engine will want that the source has not

    def __str__(self) -> str:
        how = f"approximation ({self.approximation})" if self.approximation else "exact"
        engine = ENGINES[self.to]
        if not engine.running:
            how += f" by its source, version {engine.verified}, not run" if engine.verified else ", not run"
        serves = f"{engine.title} will serve {self.serves:,} tokens"
        if self.flags:
            serves += f", {self.target_length:,} with {' '.join(self.flags)}"
        return f"{self.path}: {self.method} as {self.form}, {how}; {serves}"


def exported(engine: Engine, path: Path, canonical: Canonical, stated: Stated, **commands: Any) -> Exported:
    """What was written for an engine, with the commands that come next."""
    return Exported(
        path=path,
        to=engine.name,
        method=canonical.method,
        form=stated.form,
        serves=stated.serves,
        target_length=canonical.main.target_length,
        flags=stated.flags,
        approximation=canonical.approximation,
        **commands,
    )
