"""One call: a scaling in the settings of a training framework."""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropescale import outside
from ropescale.checkpoints import resolve
from ropescale.checks import require_choice
from ropescale.errors import ExportError
from ropescale.export.canonical import Canonical, canonical
from ropescale.export.engines import ENGINES
from ropescale.export.source import AS_IT_IS, requested, source_of
from ropescale.frameworks.base import FRAMEWORKS, Framework
from ropescale.methods import Method
from ropescale.records import EXPORT_FIELD, saved_record
from ropescale.request import Request
from ropescale.trust import takes_trust


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What a framework is told."""

    framework: str
    method: str  # in words
    target_length: int  # tokens
    write: str  # the command that writes the folder that it is given; empty where it needs none
    settings: str
    misreads: tuple[str, ...]  # what it reads otherwise than it says
    read: str  # the commit in which that was read, and its day

    def __str__(self) -> str:
        title = FRAMEWORKS[self.framework].title
        said = [f"{title}, by its source ({self.read}), not run: {self.method}, {self.target_length:,} tokens"]
        if self.write:
            said += ["write the folder that it reads:", f"  {self.write}"]
        said += ["settings:", *(f"  {line}" for line in self.settings.splitlines())]
        return "\n".join([*said, "what it reads otherwise:", *(f"  - {one}" for one in self.misreads)])

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


@takes_trust
def flags(
    model: str | Path,
    *,
    framework: str,
    method: str | Method | None = None,
    factor: float | None = None,
    target_length: int | None = None,
    original_length: int | None = None,
    existing: str = "error",
    layers: str = "global",
    trust_remote_code: bool = False,
    **knobs: Any,
) -> Flags:
    """The settings by which a training framework means a scaling, with what it reads otherwise than it says.

    Nothing is written and no weight is read. Where its settings have no words for a scaling, it is given a folder
    whose config has them, and the command that writes it comes first.

    Args:
        model: a folder, as published or extended already; `tiny`, `smollm2` or a hub id.
        framework: "axolotl", "llama_factory", "ms_swift", "unsloth" or "verl".
        method: extends the model as `ropescale.patch` does, and so do the others; left out of an extended one.
        factor: see `method`.
        target_length: see `method`.
        original_length: see `method`.
        existing: see `method`.
        layers: see `method`.
        trust_remote_code: run Python code that lies in the checkpoint.
        **knobs: of the method.

    Example:
        >>> from ropescale.frameworks import flags
        >>> print(flags("tiny", framework="unsloth", method="yarn", factor=4).settings)
        FastLanguageModel.from_pretrained("out/tiny-yarn-512", max_seq_length=512)

    Raises:
        ExportError: a method that no config states: one that acts in attention, or depends on length.
        InvalidArgumentError: an unknown framework, or arguments that break their rules.
        RopescaleError: whatever `export` raises before weights are read.
    """
    asked = locals()
    name = str(framework).replace("-", "_")  # as they write themselves
    require_choice("framework:", name, sorted(FRAMEWORKS), remedy="name a framework")
    teller = FRAMEWORKS[name]
    request = requested({**asked, "adapter": None})
    source = source_of(model, request, as_it_is=method == AS_IT_IS)
    rotation = _stated(source.config, teller)
    folder = teller.engine()
    fields = ENGINES[folder].held(source.config, rotation).fields
    fields = {entry: value for entry, value in fields.items() if entry != "head_dim"}  # which no scaling changes
    done = saved_record(source.config)  # an engine may be told another length than it then serves
    length = rotation.main.target_length if done is None else done.target_length
    write, place = "", resolve(source.name)  # of which a framework knows no short name
    worded = ENGINES[folder].plain or (getattr(source.config, EXPORT_FIELD, None) or {}).get("engine") == folder
    if not teller.states(fields) and (request is not None or not worded):
        place = f"out/{Path(source.name).name}-{folder if request is None else request.name}-{length}"
        words = ["ropescale", *outside.options(), "export", source.name, place, "--to", folder]
        write = shlex.join(words if request is None else [*words, *_options(request)])
    return Flags(
        framework=name,
        method=rotation.method if done is None else f"{done.method} x{length / done.original_length:g}",
        target_length=length,
        write=write,
        settings=teller.settings(place, fields if teller.states(fields) else None, length),
        misreads=teller.misreads,
        read=teller.read,
    )


def _stated(config: Any, teller: Framework) -> Canonical:
    """The rotations that a config states.

    Raises:
        ExportError: no fixed frequencies.
    """
    try:
        return canonical(config)
    except ExportError as error:
        done = saved_record(config)
        what = config.model_type if done is None else done.method
        raise ExportError(
            f"{what}: must be a method of fixed frequencies to stand in a config that {teller.title} reads, got one "
            f"that acts in attention or depends on length; {teller.instead}"
        ) from error


def _options(request: Request) -> list[str]:
    """What the command line is told of a request."""
    words = ["--method", request.name]
    for name, value in request.asked().items():
        if name not in request.knobs:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return words + (["--knobs", json.dumps(dict(request.knobs))] if request.knobs else [])
