"""Damaged files of every kind end every verb that reads them in a sentence, and nothing is written."""

from __future__ import annotations

import pytest
from bad_checkpoints import PLACES, every
from world import Fault, World, complaint, damaged
from wrong_files import Damage

CASES = every()


@pytest.mark.sampled(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("fault", "damage"), CASES, ids=[f"{fault.verb}-{fault.kind}: {fault.what}" for fault, _ in CASES]
)
def test_what_is_damaged_is_told(fault: Fault, damage: Damage, place: World) -> None:
    with damaged(place, PLACES[fault.kind], damage):
        assert not complaint(fault, place)
