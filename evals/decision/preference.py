"""Which of arms that do equally well is taken: the cheaper and safer one."""

from __future__ import annotations

from enum import IntEnum

from ropescale.errors import UnknownMethodError
from ropescale.evals.results import Arm


class Means(IntEnum):
    """What an arm is made with, the cheapest and safest first."""

    NOTHING = 0
    STATIC = 1  # frequencies that a config states and every engine may hold
    LATE = 2  # what acts when attention reads
    ADAPTER = 3  # what was trained


def means_of(arm: Arm) -> Means:
    """What an arm is made with; a method that nobody here knows counts as one that acts in attention."""
    from ropescale.methods import FixedMethod, get_method  # torch, which reading results does not need

    if arm.adapter:
        return Means.ADAPTER
    if arm.unextended:
        return Means.NOTHING
    try:
        return Means.STATIC if issubclass(get_method(arm.method), FixedMethod) else Means.LATE
    except UnknownMethodError:
        return Means.LATE
