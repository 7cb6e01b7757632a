"""What the tests of exports share."""

from pathlib import Path

import pytest
from exports import checkpoint


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with head_dim 64."""
    return checkpoint(tmp_path_factory.mktemp("source") / "llama")
