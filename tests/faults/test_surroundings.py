"""What a command is started in: streams that are closed, full or in ASCII, a folder that is gone, names of no text."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ropescale import cli

NO_TEXT = os.fsdecode(b"na\xefve")  # a name in Latin-1, as old disks have them


def said(shell: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What comes of `ropescale ...` in a shell, with R for it."""
    return subprocess.run(
        ["sh", "-c", f'R() {{ "{sys.executable}" -m ropescale "$@"; }}; {shell}'],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )


def test_a_closed_output_takes_everything(tmp_path: Path) -> None:
    ended = said("R methods >&-", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_closed_streams_leave_the_code(tmp_path: Path) -> None:
    assert said("R methods >&- 2>&-", tmp_path).returncode == 0
    assert said("R methods --nowhere 2>&- >&-", tmp_path).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_output_is_told(tmp_path: Path) -> None:
    ended = said("R methods >/dev/full", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        "ropescale: listing the methods: what is written or printed must have room, got 'No space left on device'; "
        "make room where it goes\n"
    )


def test_letters_that_a_stream_has_not_are_spelled(tmp_path: Path) -> None:
    ended = said("R methods", tmp_path, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()
    assert "\\xe9" in ended.stdout


@pytest.mark.filterwarnings("ignore")
def test_a_name_that_is_no_text_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    stream = io.TextIOWrapper(printed, encoding="utf-8")  # as that of a terminal: strict
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["rescale", "tiny", str(tmp_path / NO_TEXT), "--factor", "2"]) == 0
    assert b"na\\udcefve" in printed.getvalue()
    assert stream.errors == "strict"
    assert (tmp_path / NO_TEXT / "config.json").is_file()


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    ended = said("mkdir gone; cd gone; rmdir ../gone; R methods", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        "ropescale: the folder that this runs in: must be there, got one that was removed; change into another\n"
    )
