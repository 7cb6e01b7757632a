"""A checkpoint as a user has it, for faults to be planted in."""

import shutil
from pathlib import Path

import pytest
from families import family
from faults import edited
from transformers import AutoTokenizer

from ropescale.checkpoints import resolve


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a user has it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("plain")
    family("llama").save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("tiny")).save_pretrained(folder)
    edited("tokenizer_config.json", model_max_length=10**30)(folder)
    return folder


@pytest.fixture
def checkpoint(plain: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "checkpoint"))
    shutil.copy(Path(resolve("tiny"), "tokenizer.json"), folder)
    return folder
