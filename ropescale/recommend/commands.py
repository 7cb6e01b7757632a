"""The exact next commands: what writes the model that is recommended, what checks it, and what trains it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropescale import listing, outside
from ropescale.evals.plan import Options
from ropescale.methods import FixedMethod, get_method
from ropescale.request import split_knobs

UNCHANGED = "unscaled"  # the method that raises a model's limits and leaves its rotation


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line to paste."""

    purpose: str  # what it does, in words
    line: str


def ropescale_line(words: Sequence[object]) -> str:
    """A call of the command line, with the files that this one was given."""
    return shlex.join(["ropescale", *outside.options(), *map(str, words)])


@dataclass(frozen=True, kw_only=True)
class Written:
    """A model as it is recommended, before it is written: the method, and from what it starts."""

    model: str  # as the caller named it
    method: str | None  # None: the model as it is, with its limits raised
    knobs: Mapping[str, Any]  # log_n and temperature among them
    target_length: int  # tokens
    existing: str = "error"
    layers: str = "global"
    original_length: int | None = None

    @property
    def name(self) -> str:
        """The method that is put in."""
        return self.method or UNCHANGED

    @property
    def folder(self) -> str:
        """Where it goes: in a folder of its own under out."""
        return f"out/{Path(self.model).name}-{self.name}-{self.target_length}"

    @property
    def in_config(self) -> bool:
        """Whether a config states it without a model that is loaded."""
        return issubclass(get_method(self.name), FixedMethod) and not any(split_knobs(self.knobs)[1].values())

    def options(self) -> list[str]:
        """The options that say so on the command line."""
        words = ["--method", self.name, "--target-length", str(self.target_length)]
        words += ["--knobs", json.dumps(dict(self.knobs))] if self.knobs else []
        words += ["--existing", self.existing] if self.existing != "error" else []
        words += ["--layers", self.layers] if self.layers != "global" else []
        return words + (["--original-length", str(self.original_length)] if self.original_length else [])

    def write(self, engine: str | None) -> Command:
        """What writes it: for an engine, or as a checkpoint that Transformers loads."""
        if not self.in_config:
            return Command(purpose="write it; ropescale.load brings it back", line=self._python())
        if engine is None:
            words = ["rescale", self.model, self.folder, *self.options()]
            return Command(purpose="write it, weights unread", line=ropescale_line(words))
        suffix = listing.engines()[engine].suffix
        words = ["export", self.model, f"{self.folder}{suffix}", "--to", engine, *self.options()]
        return Command(purpose=f"write it for {listing.engines()[engine].title}", line=ropescale_line(words))

    def _python(self) -> str:
        """Loaded, patched and saved, its tokenizer beside it."""
        given = {"target_length": self.target_length, **self.knobs}
        for name, value, default in (("existing", self.existing, "error"), ("layers", self.layers, "global")):
            given |= {name: value} if value != default else {}
        given |= {"original_length": self.original_length} if self.original_length else {}
        told = ", ".join(f"{name}={_literal(value)}" for name, value in given.items())
        model, folder = _literal(self.model), _literal(self.folder)
        program = (
            "import ropescale, transformers; "
            f"model = ropescale.load({model}); "
            f"ropescale.patch(model, {_literal(self.name)}, {told}); "
            f"model.save_pretrained({folder}); "
            f"transformers.AutoTokenizer.from_pretrained(model.name_or_path).save_pretrained({folder})"
        )
        return shlex.join(["python", "-c", program])

    def check(self, options: Options) -> Command:
        """What asks the model that was written so much, with the prompts of these options."""
        words = ["eval", self.folder, "--methods", "none", "--tasks", ",".join(options.task_names)]
        words += ["--lengths", ",".join(map(str, options.lengths)), "--samples", str(options.samples)]
        words += ["--windows", str(options.windows), "--texts", options.source, "--seed", str(options.seed)]
        words += ["--output", f"{self.folder}-check"]
        return Command(purpose="check it with other prompts", line=ropescale_line(words))


def _literal(value: Any) -> str:
    """A value as Python has it; text in double quotes, which a shell's single ones can hold."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
