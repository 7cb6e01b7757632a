"""Every file format that is read, damaged by seed: an answer or a sentence, in bounded time and memory.

A few inputs run with all tests, and whatever was once a fault; a minute of them with `make test-slow`, as many as one
likes with `python scripts/fuzz.py --inputs N`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import TARGETS, attack, replay

FEW, MANY = 20, 6000  # the second over all targets, by their shares
LATER = 10**6  # numbers that scripts/fuzz.py does not come to


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_a_few(name: str, tmp_path: Path) -> None:
    outcome = attack(name, range(FEW), tmp_path / "folder")
    assert not outcome.faults
    assert outcome.inputs == FEW
    assert sum(outcome.ended.values()) > outcome.ended["read"], "nothing that was damaged was refused"


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_what_was_once_a_fault(name: str, tmp_path: Path) -> None:
    assert not replay(name, tmp_path / "folder").faults


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_a_minute(name: str, tmp_path: Path) -> None:
    count = MANY * TARGETS[name].share // 100
    outcome = attack(name, range(LATER, LATER + count), tmp_path / "folder")
    assert not outcome.faults, "\n".join(f"{kind}: {said}" for kind, said in outcome.faults.items())


def test_the_shares_of_the_targets_are_hundredths() -> None:
    assert sum(target.share for target in TARGETS.values()) == 100
