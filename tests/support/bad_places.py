"""Faults of the system under commands that write: a full disk, missing permissions, a signal on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from denied import denied, full
from world import Fault, World, run

from ropescale import cli

WRITING = {
    "rescale": "rescale {model} {new} --factor 2",
    "export": "export {model} {new} --to transformers --method yarn --factor 2",
    "export to vllm": "export {model} {new} --to vllm --method yarn --factor 2",
    "export to gguf": "export {model} {gguf} --to gguf --method yarn --factor 2",
    "merge": "merge {adapter} {new}",
    "explain": "explain {model} --methods linear --output {page}",
    "plot": "plot {model} --methods linear --output {picture}",
    "report": "report {results}",
}
# What writes bit by bit, and keeps what is whole
LONG = {
    "eval": "eval {model} --methods none --tasks passkey --lengths 128 --samples 1 --depths 0.5 --output {new}",
    "search": "search {model} --factor 2 --candidates 4 --windows 1 --batches 1 --held-out 5 --output {new}",
    "train": "train lora --model {model} --factor 2 --data passkey --max-documents 4 "
    "--eval-texts sample --max-steps 1 --output {new}",
}
SIZES = (0, 100, 3000)  # bytes, which no output of these fits into


def verb_of(name: str) -> str:
    return name.partition(" ")[0]


Planting = Callable[[World], AbstractContextManager[None]]


def disks() -> list[tuple[Fault, Planting]]:
    """Disks that are full after so many bytes of any file."""
    return [
        (
            Fault(verb=verb_of(name), kind="disk", what=f"{name}: room for {size} bytes", given=tuple(given.split())),
            lambda world, size=size: full(size),
        )
        for name, given in {**WRITING, "eval": LONG["eval"], "search": LONG["search"]}.items()
        for size in SIZES
        if size < 3000 or name not in LONG
    ]


READ = {
    "model": 0o000,
    "model/config.json": 0o000,
    "model/model.safetensors": 0o000,
    "model/tokenizer.json": 0o000,
    "adapter/adapter_config.json": 0o000,
    "adapter/adapter_model.safetensors": 0o000,
    "adapter/ropescale.json": 0o000,
    "results": 0o000,
    "results/run.json": 0o000,
    "results/results.jsonl": 0o000,
}
MEETS = {  # which of these a command reads; of the others it knows nothing
    "inspect": ("model", "model/config.json"),
    "memory": ("model", "model/config.json"),
    "flags": ("model", "model/config.json"),
    "explain": ("model", "model/config.json"),
    "plot": ("model", "model/config.json"),
    "doctor": ("model", "model/config.json"),
    "rescale": ("model", "model/config.json", "model/model.safetensors", "model/tokenizer.json"),
    "export": ("model", "model/config.json", "model/model.safetensors", "model/tokenizer.json"),
    "chat": ("model", "model/config.json", "model/model.safetensors", "model/tokenizer.json"),
    "eval": ("model", "model/config.json", "model/model.safetensors", "model/tokenizer.json"),
    "search": ("model", "model/config.json", "model/model.safetensors", "model/tokenizer.json"),
    "train": ("model", "model/config.json", "model/model.safetensors", "model/tokenizer.json"),
    "verify-export": ("model", "model/config.json", "model/model.safetensors"),
    "verify-server": ("model", "model/config.json"),
    "recommend": ("model", "model/config.json", "model/model.safetensors"),
    "merge": ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/ropescale.json"),
    "report": ("results", "results/run.json", "results/results.jsonl"),
}


def permissions(base: dict[str, str]) -> list[tuple[Fault, Planting]]:
    """Files that may not be read, and folders in which nothing may be made."""
    found: list[tuple[Fault, Planting]] = []
    for verb, places in MEETS.items():
        for place in places:
            fault = Fault(
                verb=verb,
                kind="permissions",
                what=f"{place} may not be read",
                given=(verb, *base[verb].split()),
                codes=(1, 2) if verb in ("doctor", "verify-export") else (2,),
            )
            found.append((fault, lambda world, place=place: denied(world.root / place, READ[place])))
    for name, given in {**WRITING, **LONG}.items():
        where = "results" if name == "report" else "."
        fault = Fault(
            verb=verb_of(name), kind="permissions", what=f"{name}: nothing may be made", given=tuple(given.split())
        )
        found.append((fault, lambda world, where=where: denied(world.root / where, 0o500)))
    return found


def planted(fault: Fault, world: World, planting: Planting) -> tuple[int, str]:
    """How a command ends while a fault of the system is there."""
    with planting(world):
        return run(fault.given, world)


# Signals

TOUCHES = frozenset({"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "shutil.copyfile"})


@contextlib.contextmanager
def child(words: tuple[str, ...], world: World, at: int, number: int) -> Iterator[tuple[int, int, str]]:
    """A command in a process of its own, which gets a signal where it touches the world for the nth time.

    Gives the status that `os.waitpid` has, how often the world was touched, and what was said.
    """
    told = world.root.with_name("told")
    process = os.fork()
    if not process:
        code = 99
        try:
            code = _in_the_child(words, world, at, number, told)
        finally:
            os._exit(code)
    status = os.waitpid(process, 0)[1]
    said = told.read_text() if told.exists() else ""
    touched = told.with_name("touched")
    yield status, int(touched.read_text() or 0) if touched.exists() else 0, said
    told.unlink(missing_ok=True)
    touched.unlink(missing_ok=True)


def _in_the_child(words: tuple[str, ...], world: World, at: int, number: int, told: Path) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in TOUCHES and str(arguments[0]).startswith(str(world.root)):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), number)

    with told.open("w") as said:
        sys.stdout = sys.stderr = said
        os.chdir(world.root)
        sys.addaudithook(hook)
        code = cli.main([world.filled(word) for word in words])
        told.with_name("touched").write_text(str(seen))
    return code


def torn(folder: Path) -> list[str]:
    """Files of a long run that are not whole: JSON that does not end, lines that do not."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            try:
                many = text.splitlines() if path.suffix == ".jsonl" else [text]
                [json.loads(one) for one in many]
            except ValueError:
                found.append(str(path.relative_to(folder)))
    return found
