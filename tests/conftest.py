"""What every test shares: one thread, quiet progress bars, no reach for a network, a registry to define methods in."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of child processes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import setuptools  # noqa: F401  # torch's compiler imports it, which fails after Python's own distutils was imported
import torch
import transformers

# Tiny models: a second thread only waits for the first, and stalls where the cores are busy
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

# evals/ and recipes/ stand beside the package, so that from here an editable install of another checkout gives its own
ROOT = Path(__file__).resolve().parents[1]
for room in ("", ".evals", ".recipes"):
    found = find_spec(f"ropescale{room}")
    if found is None or not Path(str(found.origin)).resolve().is_relative_to(ROOT):
        raise pytest.UsageError(
            f"ropescale{room}: must be this checkout's, got {found and found.origin}; CONTRIBUTING.md says how a copy "
            f"imports itself"
        )

from ropescale.methods import base as registry  # noqa: E402  # only once it is known which checkout's it is


@pytest.fixture
def registered() -> Iterator[None]:
    """Methods defined in a test leave the registry with it."""
    before = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)
