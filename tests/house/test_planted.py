"""Links planted at the names that the long verbs write: none is followed to what lies outside.

The names are found by watching: whatever a run opens to write, makes or moves, and whatever it leaves. Those that two
runs of one command have in common can be guessed, and a link can stand there before the run.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ropescale import cli
from ropescale.destinations import removed
from ropescale.recipes.train import RESULTS

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_seen: list[set[Path]] = []  # of the watching that goes on; an audit hook can never be taken away


def _noticed(event: str, given: tuple[Any, ...]) -> None:
    if not _seen:
        return
    paths: tuple[Any, ...] = ()
    if event == "open" and not isinstance(given[0], int) and (given[2] or 0) & WRITING:
        paths = given[:1]
    elif event in ("os.mkdir", "os.rename"):
        paths = given[: 1 + (event == "os.rename")]
    _seen[-1].update(Path(os.path.abspath(os.fsdecode(path))) for path in paths if path is not None)


sys.addaudithook(_noticed)


@contextmanager
def watched(place: Path) -> Iterator[set[str]]:
    """The names below a folder that are written within the block, as text; filled when it ends."""
    found: set[str] = set()
    _seen.append(set())
    try:
        yield found
    finally:
        noticed = _seen.pop()
        found.update(str(path.relative_to(place)) for path in noticed if place in path.parents)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


FEW = "--eval-texts sample --eval-windows 1 --eval-passkeys 0 --eval-strategy no --length 128 --batch-size 1"
TRAINING = f"--model tiny --factor 2 --data passkey --max-documents 6 --save-steps 1 {FEW} --cache-dir PLACE/cache"
CLOZE = "eval tiny --methods none --tasks cloze --limit 2 --output PLACE/out"


def half_way(place: Path) -> None:
    """A run that was stopped after its first step."""
    run = place / "out"
    told = json.loads((run / "training.json").read_text())
    (run / "training.json").write_text(json.dumps({name: told[name] for name in told if name not in RESULTS}))
    for path in run.iterdir():
        if path.name not in ("training.json", "checkpoint-1"):
            removed(path)
    removed(place / "cache")


def without_reports(place: Path) -> None:
    """An evaluation of which the cells alone are there."""
    for path in (place / "out").iterdir():
        if path.name not in ("run.json", "results.jsonl", "timings.jsonl"):
            removed(path)


def new(place: Path) -> None:
    removed(place / "out")


@dataclass(frozen=True)
class Verb:
    """A command that writes into `out`."""

    command: str
    before: Callable[[Path], object]  # what is taken from a place where it ran: then it can be given again
    refused: str  # of the names: where a link ends the run in a sentence, as an expression
    first: str = ""  # what is run before

    def run(self, place: Path) -> int:
        return cli.main(self.command.replace("PLACE", str(place)).split())


REPORTS = ("evaluate.json", "model-card.md", "report.html", "report.json", "report.md")
EVALUATED = ("run.json", "results.jsonl", "timings.jsonl", ".cells", *REPORTS)
TRAINED = ("training.json", "training.html", ".lock")
VERBS = {
    "train": Verb(
        f"train lora {TRAINING} --max-steps 2 --output PLACE/out", half_way, rf"out/({'|'.join(TRAINED)})|cache/.+"
    ),
    "train all weights": Verb(
        f"train full {TRAINING} --max-steps 2 --save-total-limit 1 --output PLACE/out",
        half_way,
        rf"out/({'|'.join(TRAINED)})|cache/.+",
        first=f"train full {TRAINING} --max-steps 2 --output PLACE/out",
    ),
    "merge": Verb(
        "merge PLACE/adapter PLACE/out",
        new,
        r"\.out\.lock|out/.+",
        first=f"train lora {TRAINING} --max-steps 1 --output PLACE/adapter",
    ),
    "eval": Verb(CLOZE, new, r"out/.+"),
    "eval that goes on": Verb(CLOZE, without_reports, r"out/.+"),
    "demo": Verb("demo --methods yarn --factors 2 --lengths 128 --samples 1 --output PLACE/out", new, r"out/[^/]+"),
}
GIVEN = {"out", "cache"}  # on the command line


@dataclass(frozen=True)
class Stage:
    """A place as a verb is to find it, and the names below it that the verb writes whenever it is given."""

    place: Path
    names: tuple[str, ...]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stage]:
    made: dict[str, Stage] = {}

    def stage(name: str) -> Stage:
        if name not in made:
            verb, place = VERBS[name], tmp_path_factory.mktemp("stage").resolve()
            if verb.first:
                assert cli.main(verb.first.replace("PLACE", str(place)).split()) == 0
            known = set(content(place)) if verb.before is new else set()  # what is only read
            written = []
            for _ in range(2):
                with watched(place) as seen:
                    assert verb.run(place) == 0
                written.append({*seen, *content(place)} - known)
                verb.before(place)
            made[name] = Stage(place, tuple(sorted(written[0] & written[1])))
        return made[name]

    return stage


OUTSIDE: dict[str, Callable[[Path, Path], Path]] = {
    "a file": lambda mine, there: mine / "diary.txt",
    "a folder": lambda mine, there: mine / "papers",
    "nothing": lambda mine, there: mine / "nothing",
    "what stood there": lambda mine, there: mine / there.name,  # which was moved there, so that all of it is right
}


def plant(kind: str, names: Sequence[str], place: Path, mine: Path) -> None:
    """Put links at names below a place, in whatever folders they need."""
    for name in names:
        there = place / name
        target = OUTSIDE[kind](mine, there)
        there.parent.mkdir(parents=True, exist_ok=True)
        if kind == "what stood there":
            there.rename(target)
        else:
            removed(there)
        there.symlink_to(target)


def attacked(verb: str, kind: str, names: Sequence[str], stage: Stage, tmp_path: Path) -> int:
    """Run a verb where links were planted; the exit code of a run that left all of mine alone."""
    place, mine = tmp_path / "place", tmp_path / "mine"
    shutil.copytree(stage.place, place)
    (mine / "papers").mkdir(parents=True)
    (mine / "papers" / "letter.txt").write_text("mine")
    (mine / "diary.txt").write_text("mine")
    plant(kind, names, place, mine)
    before = content(mine)
    said = io.StringIO()
    with redirect_stderr(said):
        code = VERBS[verb].run(place)
    after = content(mine)
    if set(names) <= GIVEN:  # a folder that the user names may be a link of theirs: it is filled, and nothing is lost
        after = {name: after.get(name) for name in before}
    assert after == before, f"{names} led out"
    assert code in (0, 2), said.getvalue()
    assert "Traceback" not in said.getvalue()
    if code:
        assert re.match(r"ropescale: .+, got .+; .+", said.getvalue().splitlines()[-1]), said.getvalue()
    return code


def outermost(names: Sequence[str], verb: str, place: Path) -> list[str]:
    """Those that a run passes, in a place where they are not yet, without what lies in one of them."""
    passed = [one for one in names if one not in GIVEN and not re.fullmatch(VERBS[verb].refused, one)]
    missing = [one for one in passed if not (place / one).exists()]
    return [one for one in missing if not any(str(above) in missing for above in Path(one).parents)]


@pytest.mark.parametrize("kind", ["a file", "a folder", "nothing"])
@pytest.mark.parametrize("verb", ["train", "merge"])
def test_a_run_puts_its_own_in_the_place_of_links(
    verb: str, kind: str, stages: Callable[[str], Stage], tmp_path: Path
) -> None:
    """At all names at once that it does not read."""
    stage = stages(verb)
    names = outermost(stage.names, verb, stage.place)
    assert {"train": "out/adapter_model.safetensors", "merge": ".out.partial"}[verb] in names
    assert attacked(verb, kind, names, stage, tmp_path) == 0
    assert not any((tmp_path / "place" / name).is_symlink() for name in names)


SENTENCES = [("merge", "out"), ("merge", ".out.lock")]
SENTENCES += [("train", f"out/{name}") for name in TRAINED]
SENTENCES += [("eval that goes on", f"out/{name}") for name in EVALUATED]


@pytest.mark.parametrize(("verb", "name"), SENTENCES)
def test_or_ends_in_a_sentence(verb: str, name: str, stages: Callable[[str], Stage], tmp_path: Path) -> None:
    stage = stages(verb)
    kind = "what stood there" if (stage.place / name).exists() else "a file"
    assert attacked(verb, kind, [name], stage, tmp_path) == 2


def test_a_demo_trains_in_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of its adapter has a name that can be guessed; an empty one would be filled."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lora").symlink_to(tmp_path / "mine")
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"ropescale: --output: must hold its folders itself, got '{tmp_path / 'out' / 'lora'}', which is a link; give "
        f"another, or remove it"
    )
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("verb", [name for name in VERBS if name != "demo"])
def test_each_name(verb: str, kind: str, stages: Callable[[str], Stage], tmp_path: Path) -> None:
    stage = stages(verb)
    wrong = []
    for number, name in enumerate(stage.names):
        if kind == "what stood there" and (name == "out" or not (stage.place / name).exists()):
            continue  # a link to the run itself says where it lies
        try:
            code = attacked(verb, kind, [name], stage, tmp_path / str(number))
            print(verb, kind, name, code)
        except AssertionError as error:
            wrong.append(f"{name}: {str(error)[:600]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a file", "a folder", "nothing"])
def test_a_demo(kind: str, stages: Callable[[str], Stage], tmp_path: Path) -> None:
    """At each name of its own; what its training writes is refused in a folder that holds anything."""
    stage = stages("demo")
    own = [name for name in stage.names if re.fullmatch(r"out/[^/]+", name)]
    assert {"out/lora", "out/report.html", "out/run.json"} <= set(own)
    for number, name in enumerate(own):
        assert attacked("demo", kind, [name], stage, tmp_path / str(number)) == 2, name
    assert attacked("demo", kind, ["out/lora/README.md"], stage, tmp_path / "within") == 2
