"""Destinations: whole or not at all, one run at a time, and nothing of anybody else's is touched."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ropescale.destinations import require_new, written_whole
from ropescale.errors import CheckpointError, InvalidArgumentError


def a_file(path: Path) -> None:
    path.write_text("new")


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("new")


kinds = pytest.mark.parametrize("make", [a_file, a_folder], ids=lambda make: make.__name__)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in sorted(folder.rglob("*"))
    }


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = tree(folder)
    yield
    assert tree(folder) == before


def whole(make: Callable[[Path], None]) -> dict[str, str]:
    return {"out": "new"} if make is a_file else {"out": "", "out/config.json": "new"}


@kinds
@pytest.mark.parametrize("stood", [False, True], ids=["new", "an empty folder"])
def test_it_appears_when_it_is_whole_and_nothing_is_left_beside_it(
    stood: bool, make: Callable[[Path], None], tmp_path: Path
) -> None:
    if stood:
        (tmp_path / "out").mkdir()
    before = tree(tmp_path)
    with written_whole(tmp_path / "out") as work:
        assert not work.exists()
        make(work)
        assert work.name.startswith("."), "so that nobody takes it for a model"
        assert {name: text for name, text in tree(tmp_path).items() if not name.startswith(".")} == before
    assert tree(tmp_path) == whole(make)


def write(destination: Path, make: Callable[[Path], None], meanwhile: Callable[[], object]) -> None:
    """A run during which something else happens."""
    with written_whole(destination) as work:
        make(work)
        meanwhile()


@kinds
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_half_way_leaves_nothing(
    error: type[BaseException], make: Callable[[Path], None], tmp_path: Path
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(error):
        write(tmp_path / "out", make, fail)
    assert tree(tmp_path) == {}


@kinds
@pytest.mark.parametrize("left", [a_file, a_folder], ids=lambda left: f"left {left.__name__}")
def test_what_a_killed_run_left_is_removed(
    left: Callable[[Path], None], make: Callable[[Path], None], tmp_path: Path
) -> None:
    left(tmp_path / ".out.partial")
    (tmp_path / ".out.lock").write_text("")
    with written_whole(tmp_path / "out") as work:
        make(work)
    assert tree(tmp_path) == whole(make)


# What somebody else does to `out` meanwhile
THEIRS: dict[str, Callable[[Path], object]] = {
    "a file": lambda out: out.write_text("theirs"),
    "an empty folder": lambda out: out.mkdir(),
    "a folder": lambda out: (out.mkdir(), (out / "theirs").write_text("theirs")),
}


@kinds
@pytest.mark.parametrize("case", THEIRS)
def test_what_was_made_meanwhile_is_left_alone(case: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "alike").mkdir()
    THEIRS[case](tmp_path / "alike" / "out")
    expected = tree(tmp_path / "alike")
    (tmp_path / "place").mkdir()
    out = tmp_path / "place" / "out"
    said = r"^destination: must be a place with room that can be written, got '.*out' \(.*made by somebody else"
    with pytest.raises(CheckpointError, match=said):
        write(out, make, lambda: THEIRS[case](out))
    assert tree(tmp_path / "place") == expected


def test_an_empty_folder_that_was_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match=r"^destination: must be a place with room that can be written, got "):
        write(out, a_folder, lambda: (out / "theirs").write_text("theirs"))
    assert tree(tmp_path) == {"out": "", "out/theirs": "theirs"}


def test_two_runs_for_one_place_are_kept_apart(tmp_path: Path) -> None:
    with written_whole(tmp_path / "out") as work:
        a_folder(work)
        with (
            unchanged(tmp_path),
            pytest.raises(CheckpointError) as refusal,
            written_whole(tmp_path / "out", name="path"),
        ):
            pytest.fail("the second run has begun")
    assert str(refusal.value) == (
        f"path: must not be in the making, got {str(tmp_path / 'out')!r}, which another process is writing; wait for "
        f"it"
    )
    assert tree(tmp_path) == whole(a_folder)
    with (
        unchanged(tmp_path),
        pytest.raises(InvalidArgumentError, match=r"^destination: must be new, or an empty folder, got "),
        written_whole(tmp_path / "out"),
    ):
        pytest.fail("a run that waited has begun to write once more")


def test_more_than_the_disk_holds_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    said = rf"^destination: needs 1000000\.00 GB, got [\d.]+ GB free at {re.escape(repr(str(tmp_path)))}; make room"
    with pytest.raises(CheckpointError, match=said), written_whole(tmp_path / "out", 10**15):
        pytest.fail("writing has begun")
    assert tree(tmp_path) == {}


def test_the_working_folder_itself_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    require_new(Path("."))
    with written_whole(Path(".")) as work:
        a_folder(work)
    assert tree(tmp_path) == whole(a_folder)


def linked(path: Path, to: str) -> None:
    path.symlink_to(path.parent / to)


TAKEN: dict[str, Callable[[Path], None]] = {
    "a file": a_file,
    "a folder with something in it": a_folder,
    "a link to nothing": lambda path: linked(path, "nothing"),
    "a link to an empty folder": lambda path: linked(path, "empty"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_there_is_told_in_words(case: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    TAKEN[case](tmp_path / "out")
    with unchanged(tmp_path), pytest.raises(InvalidArgumentError) as refusal:
        require_new(tmp_path / "out", name="path")
    assert str(refusal.value) == (
        f"path: must be new, or an empty folder, got {str(tmp_path / 'out')!r}, which exists; give another, or remove "
        f"it"
    )


@pytest.mark.parametrize("inside", ["", "more", "more/and/more", "../source/more"])
def test_a_place_within_the_source_is_told_in_words(inside: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    for start in (source, tmp_path / "link"):
        with pytest.raises(InvalidArgumentError) as refusal:
            require_new(start / inside, source)
        assert str(refusal.value) == (
            f"destination: must lie outside the source, got {str(start / inside)!r} for {str(source)!r}; give another"
        )
    require_new(tmp_path / "source-2", source)
