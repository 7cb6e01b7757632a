"""A folder with everything that commands read and write, and how a command ends there that meets a fault.

A fault is worded where the command ends with its exit code, says one sentence that names what is wrong, and leaves
every file as it was.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import peft
from attacks import TINY
from evaluations import write_evaluation
from fuzzing import Hang, within
from wrong_files import tree

import ropescale
from ropescale import cli
from ropescale.adapters import save_adapter
from ropescale.evals import tokens

SECONDS = 30  # of the processor, that a command may take to find a fault; the index of all tasks of lm-eval takes ten
SENTENCE = re.compile(r"ropescale(?: [\w-]+)?: (?:error: )?\S.{9,}")


@dataclass(frozen=True)
class Fault:
    """A fault or a bad input, and the command that meets it."""

    verb: str
    kind: str
    what: str
    given: tuple[str, ...]  # words; names in braces are places of the world
    codes: tuple[int, ...] = (2,)

    @property
    def id(self) -> str:
        """A name for a test."""
        return f"{self.verb}: {self.what}"


@dataclass(frozen=True)
class World:
    """Places by their names."""

    root: Path
    places: dict[str, str]

    def filled(self, word: str) -> str:
        """A word of a command, with its places."""
        return re.sub(r"\{(\w+)\}", lambda found: self.places.get(found[1], found[0]), word)


def made(root: Path) -> World:
    """A world in a new folder: a checkpoint, an adapter, results with a report, and files of somebody's own."""
    root.mkdir(parents=True)
    model = Path(shutil.copytree(TINY, root / "model"))
    (model / "chat_template.jinja").write_text("{% for one in messages %}{{ one['content'] }}{% endfor %}")
    patched = ropescale.patch(ropescale.load(model), "yarn", factor=4)
    config = peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    save_adapter(peft.get_peft_model(patched, config), root / "adapter")
    results = write_evaluation(root / "results", tasks=("passkey",), lengths=(128, 256))
    shutil.copytree(results, root / "others")
    for name, content in (("kept.txt", "kept"), ("page.html", "a page of before"), ("a.svg", "a picture of before")):
        (root / name).write_text(content)
    (root / "full").mkdir()
    (root / "full" / "kept.txt").write_text("kept")
    for name in ("empty", "data"):
        (root / name).mkdir()
    (root / "binary").write_bytes(bytes(range(256)) * 9)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    names = ("model", "adapter", "results", "others", "full", "empty", "binary", "loop", "pipe", "new", "data")
    places = {name: str(root / name) for name in names}
    places |= {"kept": str(root / "kept.txt"), "page": str(root / "page.html"), "picture": str(root / "a.svg")}
    places |= {"gguf": str(root / "new.gguf"), "long": str(root / ("x" * 300)), "root": str(root)}
    assert results.is_dir()
    return World(root, places)


@contextlib.contextmanager
def damaged(world: World, place: str, damage: Callable[[Path], object]) -> Iterator[None]:
    """A place of the world in another state; afterwards it is as it was."""
    folder, kept = Path(world.places[place]), Path(world.places["kept"]).with_name("as it was")
    if folder.exists():
        shutil.copytree(folder, kept)
    else:
        folder.mkdir()
    try:
        damage(folder)
        yield
    finally:
        shutil.rmtree(folder)
        if kept.exists():
            kept.rename(folder)


def run(words: tuple[str, ...], world: World) -> tuple[int, str]:
    """The exit code of a command, and what it says on standard error.

    Raises:
        Hang: it takes too long.
    """
    said, before = io.StringIO(), Path.cwd()
    tokens._loaded.cache_clear()  # as in a process of its own
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        within(SECONDS),
    ):
        os.chdir(world.root)
        try:
            code = cli.main([world.filled(word) for word in words])
        finally:
            os.chdir(before)
    return code, said.getvalue()


def complaint(fault: Fault, world: World, act: Callable[[], tuple[int, str]] | None = None) -> str:
    """What is wrong about how a command met a fault; empty where nothing is."""
    before = tree(world.root)
    try:
        code, said = (act or (lambda: run(fault.given, world)))()
    except Hang as hang:
        return f"{fault.id}: a hang, {hang}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{fault.id}: a bare {type(error).__name__}: {error}"
    return how(fault, code, said) or changed(fault, world, before)


def how(fault: Fault, code: int, said: str) -> str:
    """What is wrong about an exit code and what was said."""
    line = (said.splitlines() or [""])[-1]
    if code not in fault.codes:
        return f"{fault.id}: ended with {code}: {line[:300]}"
    if code == 1 and fault.verb in ("doctor", "verify-export"):  # which say on the page what is wrong, named
        return "" if "Traceback" not in said and "must end in" not in said else f"{fault.id}: {said[-300:]!r}"
    if not SENTENCE.match(line) or "Traceback" in said or "the whole traceback is in" in said:
        return f"{fault.id}: no sentence: {said[-300:]!r}"
    if ": error: " not in line and (
        line.endswith(".")
        or "; " not in line
        or not re.search(r"\b(?:got|neither)\b|unknown (?:method|knob|figure) .*; (?:did you mean|available)", line)
    ):
        return f"{fault.id}: what, rule, value, remedy: {line!r}"
    return ""


def changed(fault: Fault, world: World, before: dict[str, str]) -> str:
    """What a command has changed of the world that was there, or has left behind."""
    after = tree(world.root)
    lost = {name for name in before if after.get(name) != before[name]}
    left = after.keys() - before.keys()
    if left <= {"new", "new/.lock", "new/.cells"}:  # the folder of a run that did not begin, which the next may take
        left = set()
    return f"{fault.id}: changed {sorted(lost)}, left {sorted(left)}" if lost or left else ""
