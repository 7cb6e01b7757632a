"""What tests here are given."""

from __future__ import annotations

import shutil
from pathlib import Path

import families
import pytest
from attacks import TINY
from messages import Message, every_message
from transformers import PreTrainedModel

import ropescale


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """One model for all calls that leave it as it was."""
    return families.family("llama")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    families.family("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def source(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "source"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patched model on disk."""
    folder = tmp_path_factory.mktemp("saved") / "patched"
    ropescale.patch(families.family("llama"), "linear", factor=4).save_pretrained(folder)
    return folder


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A checkpoint that came from somebody else."""
    return Path(shutil.copytree(TINY, tmp_path / "theirs"))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of mine, which nobody else has to do with."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def found() -> list[Message]:
    return every_message()
