"""Destinations: whole or not at all, one run at a time, and nothing of anybody else's is touched."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ropescale.destinations import append_line, cut_torn_line, replaced, require_new, write_file, written_whole
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


# What somebody else may have planted


def planted(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that came from somebody else, and a folder of mine with a file."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    theirs.mkdir()
    mine.mkdir()
    (mine / "diary").write_text("mine")
    return theirs, mine


@kinds
@pytest.mark.parametrize("to", ["diary", ".", "nothing"])
@pytest.mark.parametrize("name", [".out.partial", ".out.lock"])
def test_a_link_in_the_place_of_the_work_is_not_followed(
    name: str, to: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    theirs, mine = planted(tmp_path)
    (theirs / name).symlink_to(mine / to)
    with unchanged(mine):
        if name == ".out.lock":
            with pytest.raises(CheckpointError, match=r"^destination: must "), written_whole(theirs / "out"):
                pytest.fail("writing has begun")
        else:
            with written_whole(theirs / "out") as work:
                make(work)
            assert tree(theirs) == whole(make)


REPLACING: dict[str, Callable[[Path], None]] = {
    "written": lambda path: write_file(path, "new", name="--output"),
    "a line more": lambda path: append_line(path, "new", name="--output"),
    "a torn line less": lambda path: cut_torn_line(path, name="--output"),
}
OTHERS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a link": (lambda path, mine: path.symlink_to(mine / "diary"), "which is a link"),
    "a link to nothing": (lambda path, mine: path.symlink_to(mine / "nothing"), "which is a link"),
    "a folder": (lambda path, mine: path.mkdir(), "which is a folder"),
    "a pipe": (lambda path, mine: os.mkfifo(path), "which is a pipe"),
}


@pytest.mark.parametrize("how", REPLACING)
@pytest.mark.parametrize("case", OTHERS)
def test_only_an_ordinary_file_is_written_again(case: str, how: str, tmp_path: Path) -> None:
    theirs, mine = planted(tmp_path)
    plant, said = OTHERS[case]
    plant(theirs / "out", mine)
    before = os.lstat(theirs / "out")
    with unchanged(mine), pytest.raises(InvalidArgumentError) as refusal:
        REPLACING[how](theirs / "out")
    assert str(refusal.value) == (
        f"--output: must be new, or an ordinary file to write again, got {str(theirs / 'out')!r}, {said}; give "
        f"another, or remove it"
    )
    assert os.lstat(theirs / "out") == before
    assert [path.name for path in theirs.iterdir()] == ["out"]


def test_a_device_is_not_written_again() -> None:
    with pytest.raises(InvalidArgumentError, match=r"got '/dev/null', which is a device; give another"):
        write_file(Path("/dev/null"), "new")
    assert Path("/dev/null").is_char_device()


def test_a_file_of_two_places_is_replaced_and_never_written_on(tmp_path: Path) -> None:
    theirs, mine = planted(tmp_path)
    os.link(mine / "diary", theirs / "out")
    with unchanged(mine):
        with pytest.raises(InvalidArgumentError, match="which stands in another place too"):
            append_line(theirs / "out", "new")
        with pytest.raises(InvalidArgumentError, match="which stands in another place too"):
            cut_torn_line(theirs / "out")
        write_file(theirs / "out", "new")
    assert tree(theirs) == {"out": "new"}


@pytest.mark.parametrize("name", ["out.part", ".out.partial", ".out.part", ".out", "out.tmp"])
def test_no_name_that_can_be_guessed_is_written_on_the_way(name: str, tmp_path: Path) -> None:
    theirs, mine = planted(tmp_path)
    (theirs / name).symlink_to(mine / "diary")
    with unchanged(mine):
        write_file(theirs / "out", "new")
    assert (theirs / "out").read_text() == "new"
    assert {path.name for path in theirs.iterdir()} == {"out", name}


def test_a_link_that_comes_while_a_file_is_made_is_refused(tmp_path: Path) -> None:
    theirs, mine = planted(tmp_path)

    def write_meanwhile() -> None:
        with replaced(theirs / "out") as work:
            a_file(work)
            (theirs / "out").symlink_to(mine / "diary")

    with unchanged(mine), pytest.raises(InvalidArgumentError, match="which is a link"):
        write_meanwhile()
    assert [path.name for path in theirs.iterdir()] == ["out"]


def test_what_is_written_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_file(tmp_path / "out", "new")
    append_line(tmp_path / "lines", "new")
    with written_whole(tmp_path / "whole") as work:
        a_file(work)
    rights = {name: (tmp_path / name).stat().st_mode for name in ("other", "out", "whole")}
    assert len(set(rights.values())) == 1


def test_a_source_that_cannot_be_read_is_not_called_a_destination_without_room(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(CheckpointError) as refusal, written_whole(tmp_path / "out") as work:
        shutil.copyfile(tmp_path / "source" / "lost", work)
    assert str(refusal.value) == (
        f"{tmp_path / 'source' / 'lost'}: must be a file that can be read, got No such file or directory; make it "
        f"readable, or fetch it again"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
