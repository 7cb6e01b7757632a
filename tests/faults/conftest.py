"""What tests here are given: a folder with everything that commands read and write, made once for a file of tests."""

from pathlib import Path

import pytest
import world


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    """A world, which every fault leaves as it was."""
    return world.made(Path(tmp_path_factory.mktemp("faults"), "world"))
