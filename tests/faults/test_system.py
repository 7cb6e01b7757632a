"""Full disks, missing permissions and signals: a sentence or the end, nothing lost, and nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from bad_options import BASE
from bad_places import LONG, WRITING, Planting, child, disks, permissions, planted, torn
from world import Fault, World, complaint, run, tree

DISKS, PERMISSIONS = disks(), permissions(BASE)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = 5  # of each command and signal, spread over the times that it touches the folder
KILLS = [(name, number, moment) for name in WRITING for number in SIGNALS for moment in range(MOMENTS)]


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("fault", "planting"), DISKS, ids=[fault.id for fault, _ in DISKS])
def test_a_full_disk(fault: Fault, planting: Planting, place: World) -> None:
    assert not complaint(fault, place, lambda: planted(fault, place, planting))
    shutil.rmtree(place.places["new"], ignore_errors=True)  # the lock of what did not begin


@pytest.mark.sampled(6)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("fault", "planting"), PERMISSIONS, ids=[fault.id for fault, _ in PERMISSIONS])
def test_missing_permissions(fault: Fault, planting: Planting, place: World) -> None:
    shutil.rmtree(place.places["new"], ignore_errors=True)  # in which something may be made, whatever holds it
    assert not complaint(fault, place, lambda: planted(fault, place, planting))


# Signals


def outcome(name: str, place: World) -> dict[str, str]:
    """What a command that nobody disturbs makes of the world, which is put back."""
    kept = place.root.with_name("kept")
    shutil.copytree(place.root, kept, symlinks=True, ignore=shutil.ignore_patterns("pipe"))
    assert run(tuple(WRITING[name].split()), place)[0] == 0
    made = tree(place.root)
    shutil.rmtree(place.root)
    kept.rename(place.root)
    os.mkfifo(place.places["pipe"])
    return made


@pytest.fixture(scope="module")
def whole(place: World) -> dict[str, tuple[dict[str, str], int]]:
    """Of each command what it makes, and how often it touches files on the way; filled as tests ask."""
    return {}


@pytest.mark.sampled(20)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "number", "moment"), KILLS, ids=[f"{name}-{number.name}-{moment}" for name, number, moment in KILLS]
)
def test_a_signal_loses_nothing_and_leaves_no_half(
    name: str, number: signal.Signals, moment: int, place: World, whole: dict[str, tuple[dict[str, str], int]]
) -> None:
    """What a killed run leaves is hidden, and the next run writes what it would have written."""
    words = tuple(WRITING[name].split())
    shutil.rmtree(place.places["new"], ignore_errors=True)
    before = tree(place.root)
    assert shown(before) == before
    if name not in whole:
        made = outcome(name, place)
        with child(words, place, 10**9, number) as (status, touched, said):
            assert status == 0, said
        assert touched >= 1
        again(place, before)
        whole[name] = made, touched
    made, touched = whole[name]
    try:
        with child(words, place, 1 + moment * (touched - 1) // (MOMENTS - 1), number) as (status, _, said):
            if number is signal.SIGINT:
                assert os.waitstatus_to_exitcode(status) in (0, 130), said  # 0 where it came after the last step
                assert "Traceback" not in said
            else:
                assert os.waitstatus_to_exitcode(status) == -number, said
        after = shown(tree(place.root))
        if name == "report":  # files of a folder, each of which is replaced by itself
            assert all(known in (before.get(entry), made[entry]) for entry, known in after.items())
        else:
            assert after in (before, made)
        if after != made:
            assert run(words, place)[0] == 0
            assert shown(tree(place.root)) == made
    finally:
        again(place, before)


def shown(entries: dict[str, str]) -> dict[str, str]:
    """Those that are not hidden, as what a killed run leaves is."""
    return {name: known for name, known in entries.items() if not any(p.startswith(".") for p in Path(name).parts)}


def again(place: World, before: dict[str, str]) -> None:
    """Put the world back: what commands of this file make, and what they write again."""
    for name in ("new", "new.gguf"):
        path = place.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (place.root / "page.html").write_text("a page of before")
    (place.root / "a.svg").write_text("a picture of before")
    for entry in sorted(tree(place.root).keys() - before.keys()):
        path = place.root / entry
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("name", LONG)
def test_a_long_run_that_is_killed_holds_whole_lines(name: str, moment: int, place: World) -> None:
    words = tuple(LONG[name].split())
    before = tree(place.root)
    with child(words, place, 2 + 3 * moment, signal.SIGKILL) as (status, _, said):
        assert os.waitstatus_to_exitcode(status) in (-signal.SIGKILL, 0), said
    folder = place.root / "new"
    assert torn(folder) == []
    assert {entry: known for entry, known in tree(place.root).items() if entry in before} == before
    shutil.rmtree(folder, ignore_errors=True)
