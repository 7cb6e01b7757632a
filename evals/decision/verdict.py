"""What arms' evidence comes to: which are out, which may still win, and the verdict; pure, knows no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from ropescale.evals.decision.comparison import Comparison, Comparisons, Difference
from ropescale.evals.decision.lengths import Bounds, error_of, found_to, read_to
from ropescale.evals.decision.measures import Evidence
from ropescale.evals.decision.need import Need, need_of
from ropescale.evals.results import UNPATCHED, Arm


class Verdict(Enum):
    """What a decision comes to."""

    TAKE = "take"  # one arm does better than the unpatched model, and no other is shown to do better than it
    NOTHING = "scale nothing"  # the unpatched model gets there itself, or no arm is better by more than the margins
    WORSE = "all worse"  # the unpatched model does better than every arm
    CONTRADICTION = "contradiction"  # one arm finds more, another reads better
    FEW = "too few"  # no arm is shown to be better or worse yet
    ALONE = "nothing patched"  # there is no arm that could be taken
    WITHIN = "within"  # the goal lies within the original length
    UNTESTED = "untested"  # nothing was tested beyond the original length, up to the goal


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one arm stands."""

    arm: Arm
    find: float | None  # share of the prompts beyond the original length, up to the goal; None where none were asked
    rounds: int  # how often each length and depth was asked
    windows: int  # of text that were read
    gain: Difference | None  # in finding, over the unpatched model
    read_gain: Difference | None  # in reading
    against_leader: tuple[Difference, ...]  # by what was measured; empty of the leader
    found_to: Bounds | None  # effective length by retrieval
    read_to: Bounds | None  # effective length by perplexity
    extends: bool  # it is shown to do better than the unpatched model
    reaches: bool  # it was run up to the goal
    can_win: bool  # more prompts may still make it the one to take
    dropped_by: Difference | None  # the figure that says it cannot: of another arm over it, or its own small gain


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What results say about a goal."""

    verdict: Verdict
    goal: int  # tokens that were asked for
    tested: int  # tokens: the longest tested length up to the goal
    arm: Arm | None  # the one to take; None where none is
    leader: Arm  # the one to take, else the one that does best as far as was observed
    ties: tuple[Comparison, ...]  # of arms that can still win with the one to take
    opposed: Comparison | None  # of a contradiction: the first finds more, the second reads better
    standings: tuple[Standing, ...]  # of every finished arm, the unpatched model first
    unfinished: tuple[Arm, ...]  # not among those decided between
    need: Need | None  # what would tell more; None where nothing would
    settled: bool  # more prompts for the arms that can still win would change nothing

    def standing(self, arm: Arm) -> Standing:
        """That of an arm."""
        return next(one for one in self.standings if one.arm == arm)


class Race:
    """The arms that were run up to the goal, and how they stand to one another."""

    def __init__(self, evidence: Sequence[Evidence], entrants: int | None = None):
        """`evidence` opens with the unpatched model's; `entrants` is how many arms take part in all."""
        running = [one for one in evidence if one.reaches]
        self.evidence = {one.arm: one for one in running}
        self.compared = Comparisons(running, entrants)
        self.patched = [one.arm for one in running[1:]]
        self.extending = self._extending()
        self.dropped = self._dropped()
        self.left = [one.arm for one in running if one.arm not in self.dropped]

    def preference(self, arm: Arm) -> tuple[float, ...]:
        """The cheaper and safer first: by what it is made with, the smaller factor, then by what it loses inside."""
        one = self.evidence[arm]
        return (one.means, arm.factor, math.inf if math.isnan(one.inside) else one.inside)

    def better(self, one: Arm, other: Arm) -> Difference | None:
        """The difference by which one arm puts another out of the race.

        One that reads better alone puts out what does better than the unpatched model only if it does so itself.
        """
        found = self.compared.of(one, other).better
        if found is None or found is self.compared.of(one, other).find:
            return found
        return found if other not in self.extending or one in self.extending else None

    def gains(self, arm: Arm) -> bool:
        """Whether an arm itself is shown to do better than the unpatched model, by more than makes no difference."""
        against = self.compared.of(arm, UNPATCHED)
        return against.better is not None and not against.negligible

    def _extending(self) -> set[Arm]:
        """The arms shown to do better than the unpatched model: themselves, or by finding more than one that does."""
        found = {arm for arm in self.patched if self.gains(arm)}
        finders = {arm for arm in found if self.finds_more(arm, UNPATCHED)}
        while more := {
            arm for arm in self.patched if arm not in finders and any(self.finds_more(arm, one) for one in finders)
        }:
            finders |= more
        return found | finders

    def finds_more(self, one: Arm, other: Arm) -> bool:
        """Whether one arm is shown to find more than another, without reading worse."""
        against = self.compared.of(one, other)
        return against.better is not None and against.better is against.find

    def _dropped(self) -> dict[Arm, Difference]:
        """Arm -> the figure that says that it cannot win."""
        found: dict[Arm, Difference] = {}
        for arm in self.patched:
            against = self.compared.of(arm, UNPATCHED)
            if against.negligible and arm not in self.extending:
                found[arm] = against.known[0]
                continue
            better = [difference for one in self.evidence if one != arm and (difference := self.better(one, arm))]
            if better:
                found[arm] = max(better, key=lambda one: (one.against == UNPATCHED, one.estimate.low))
        ahead = sorted((arm for arm in self.patched if arm in self.extending - found.keys()), key=self.preference)
        for first, second in combinations(ahead, 2):
            if first not in found and second not in found and self.compared.of(second, first).negligible:
                found[second] = self.compared.of(second, first).known[0]
        best = [arm for arm in ahead if arm not in found]
        if best:
            against = self.compared.of(best[0], UNPATCHED)
            found[UNPATCHED] = against.better or against.known[0]
        return found

    @property
    def settled(self) -> bool:
        """Whether nothing is left to tell: one arm, or those that are left are the opposite of one another."""
        return all(self.compared.of(*pair).opposed for pair in combinations(self.left, 2))


def judge(
    evidence: Sequence[Evidence],
    *,
    goal: int,
    tested: int,
    entrants: int | None = None,
    unfinished: Sequence[Arm] = (),
) -> Decision:
    """The decision between arms, of which the unpatched model is the first."""
    race = Race(evidence, entrants)
    error = error_of(max(entrants or 0, len(evidence) + len(unfinished)))
    bounds = {one.arm: (found_to(one, error), read_to(one, error)) for one in evidence}
    verdict, arm, opposed = _verdict(race, reached=_reaches(bounds[UNPATCHED], tested))
    leader = arm or _leader(race, verdict, opposed)
    ties = [race.compared.of(one, arm) for one in race.left if one != arm] if arm is not None else []
    return Decision(
        verdict=verdict,
        goal=goal,
        tested=tested,
        arm=arm,
        leader=leader,
        ties=tuple(ties),
        opposed=opposed,
        standings=tuple(_standing(race, one, leader, bounds[one.arm]) for one in evidence),
        unfinished=tuple(unfinished),
        need=_need(race, verdict, leader, ties),
        settled=race.settled,
    )


def _verdict(race: Race, *, reached: bool) -> tuple[Verdict, Arm | None, Comparison | None]:
    """The verdict, the arm to take, and what contradicts it."""
    ahead = sorted((arm for arm in race.left if arm in race.extending), key=race.preference)
    if not race.patched:
        return Verdict.ALONE, None, None
    if ahead:
        for rival in race.left:
            if rival != ahead[0] and (opposed := _opposed(race, ahead[0], rival)):
                return Verdict.CONTRADICTION, None, opposed
        return Verdict.TAKE, ahead[0], None
    if race.left == [UNPATCHED]:
        worse = all(race.compared.of(UNPATCHED, arm).better for arm in race.patched)
        return (Verdict.WORSE if worse else Verdict.NOTHING), None, None
    for arm in race.left:
        if arm != UNPATCHED and (opposed := _opposed(race, arm, UNPATCHED)):
            return Verdict.CONTRADICTION, None, opposed
    return (Verdict.NOTHING if reached else Verdict.FEW), None, None


def _opposed(race: Race, one: Arm, other: Arm) -> Comparison | None:
    """The comparison of two arms that are the opposite of one another, the one that finds more first."""
    found = race.compared.of(one, other)
    if not found.opposed:
        return None
    return found if found.find is not None and found.find.estimate.low > 0 else race.compared.of(other, one)


def _reaches(bounds: tuple[Bounds | None, Bounds | None], tested: int) -> bool:
    """Whether all that was measured reaches a length."""
    known = [one for one in bounds if one is not None]
    return bool(known) and all(one.low >= tested for one in known)


def _leader(race: Race, verdict: Verdict, opposed: Comparison | None) -> Arm:
    """Which arm does best where none is taken."""
    if opposed is not None:
        return opposed.one.arm
    if verdict is not Verdict.FEW:
        return UNPATCHED
    return max((arm for arm in race.left if arm != UNPATCHED), key=lambda arm: _observed(race, arm))


def _observed(race: Race, arm: Arm) -> tuple[float, float]:
    """What an arm was seen to find and read more than the unpatched model."""
    against = race.compared.of(arm, UNPATCHED)
    seen = [0.0 if one is None else one.estimate.value for one in (against.find, against.read)]
    return seen[0], -math.inf if math.isnan(seen[1]) else seen[1]


def _need(race: Race, verdict: Verdict, leader: Arm, ties: Sequence[Comparison]) -> Need | None:
    """What would tell the leader from the unpatched model; or the one to take from the nearest that ties with it."""
    if verdict is Verdict.FEW:
        return need_of(race.compared.of(leader, UNPATCHED))
    if not ties:
        return None
    return need_of(max(ties, key=lambda tie: 0.0 if tie.find is None else abs(tie.find.estimate.value)))


def _standing(race: Race, one: Evidence, leader: Arm, bounds: tuple[Bounds | None, Bounds | None]) -> Standing:
    arm, runs = one.arm, one.reaches
    against = race.compared.of(arm, UNPATCHED) if runs and arm != UNPATCHED else None
    return Standing(
        arm=arm,
        find=float(one.found.mean()) if runs and one.found.size else None,
        rounds=len(one.found) if one.found.size else 0,
        windows=len(one.read),
        gain=None if against is None else against.find,
        read_gain=None if against is None else against.read,
        against_leader=tuple(race.compared.of(arm, leader).known) if runs and arm != leader else (),
        found_to=bounds[0],
        read_to=bounds[1],
        extends=arm in race.extending,
        reaches=runs,
        can_win=arm in race.left,
        dropped_by=race.dropped.get(arm),
    )
