"""Every option of every verb refuses what it cannot take, in a sentence, before anything is written."""

from __future__ import annotations

import shlex

import pytest
from bad_options import BASE, CONTRADICTIONS, asked, contradictions, one_option, options, parsers
from world import Fault, World, complaint, run

ASKED = [(verb, name) for verb in BASE for name in asked(verb)]


def test_every_verb_that_takes_a_value_is_here() -> None:
    assert {verb for verb in parsers() if asked(verb)} == set(BASE)
    assert set(CONTRADICTIONS) == set(parsers()) - {"methods"} | {"methods"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", ["chat", "report", "train", "eval", "flags", "memory", "verify-export"])
def test_a_command_is_whole_but_for_its_fault(verb: str, place: World) -> None:
    """Of those that end soon: one that is refused as it is would be refused whatever is added to it."""
    dry = ("--dry-run",) if verb in ("eval", "train") else ()
    code, said = run((verb, *shlex.split(BASE[verb]), *dry), place)
    assert code == 0, said


@pytest.mark.sampled(5)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("verb", "name"), ASKED, ids=[f"{verb}-{name}" for verb, name in ASKED])
def test_bad_values_of_an_option(verb: str, name: str, place: World) -> None:
    assert not [said for fault in one_option(verb, name) if (said := complaint(fault, place))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "fault", [fault for fault in options() if "import=" in fault.what], ids=lambda fault: fault.id
)
def test_what_stands_before_the_verb(fault: Fault, place: World) -> None:
    assert not complaint(fault, place)


@pytest.mark.sampled(8)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", contradictions(), ids=lambda fault: fault.id)
def test_options_that_contradict(fault: Fault, place: World) -> None:
    assert not complaint(fault, place)
