"""Files that somebody else made: links, escapes, code and bombs in them do nothing but end in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ropescale.recipes.trainer import UNFINISHED, whole


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of mine, which nobody else has to do with."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    return folder


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}

    before = content()
    yield
    assert content() == before


def test_a_link_in_the_place_of_what_training_has_not_finished_is_not_followed(mine: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / UNFINISHED).symlink_to(mine)
    with untouched(mine), whole(run) as beside:
        assert list(beside.iterdir()) == []
        (beside / "weights").write_text("new")
    assert list(run.iterdir()) == []
