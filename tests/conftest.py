"""What every test shares: one thread, quiet progress bars, no reach for a network, a registry to define methods in."""

import os
import zlib
from collections import defaultdict
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


@pytest.hookimpl(tryfirst=True)  # before pytest takes out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)`, all cases but one in n are slow.

    Which ones stay follows from their names, so that tests of the same methods keep others of them, and each method
    is met somewhere.
    """
    sampled = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None and item.get_closest_marker("slow") is None:
            sampled[item.nodeid.partition("[")[0], *mark.args].append(item)
    for (_, share), cases in sampled.items():
        cases.sort(key=lambda case: zlib.crc32(case.nodeid.encode()))
        for case in cases[-(-len(cases) // share) :]:
            case.add_marker(pytest.mark.slow)
