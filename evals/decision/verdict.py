"""What arms' evidence comes to: which are out, which may still win, and the verdict; pure, knows no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from ropescale.evals.decision.comparison import FIND, MARGINS, READ, Comparison, Comparisons, Difference
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

    def ranked(self, arms: Iterable[Arm]) -> list[Arm]:
        """The cheaper and safer first: by what an arm is made with, then the smaller factor.

        Of those that are alike in this, those that were seen to find most, then to read best, each within the margin;
        then the one that loses least inside the original length.
        """
        alike: dict[tuple[float, float], list[Arm]] = {}
        for arm in arms:
            alike.setdefault((self.evidence[arm].means, arm.factor), []).append(arm)
        return [arm for _, group in sorted(alike.items()) for arm in self._of_one_price(group)]

    def _of_one_price(self, arms: Sequence[Arm]) -> list[Arm]:
        seen = {arm: self.compared.of(arm, UNPATCHED).observed for arm in arms}
        most = [max(one[i] for one in seen.values()) for i in (0, 1)]

        def place(arm: Arm) -> tuple[float, ...]:
            short = [
                max(0.0, best - own - MARGINS[by]) for by, best, own in zip(MARGINS, most, seen[arm], strict=True)
            ]
            inside = self.evidence[arm].inside
            return (*short, math.inf if math.isnan(inside) else inside)

        return sorted(arms, key=place)

    def better_by(self, one: Arm, other: Arm) -> str:
        """The measure by which one arm puts another out of the race; empty where it does not.

        One that reads better alone puts out what does better than the unpatched model only if it does so itself.
        """
        measure = self.compared.of(one, other).better_by
        return "" if measure == READ and other in self.extending and one not in self.extending else measure

    def _extending(self) -> set[Arm]:
        """The arms shown to do better than the unpatched model: themselves, or by finding more than one that does.

        What gains no more than the margins gains nothing.
        """
        gains = {arm: self.compared.of(arm, UNPATCHED) for arm in self.patched}
        found = {arm for arm, against in gains.items() if against.better_by and not against.negligible}
        finders = {arm for arm in found if gains[arm].better_by == FIND}
        while more := {
            arm
            for arm in self.patched
            if arm not in finders and any(self.compared.of(arm, one).better_by == FIND for one in finders)
        }:
            finders |= more
        return found | finders

    def _dropped(self) -> dict[Arm, tuple[Comparison, str]]:
        """Arm -> the comparison that says that it cannot win, and by which measure."""
        found: dict[Arm, tuple[Comparison, str]] = {}
        for arm in self.patched:
            against = self.compared.of(arm, UNPATCHED)
            better = [(self.compared.of(one, arm), by) for one in self.evidence if (by := self.better_by(one, arm))]
            if better:
                found[arm] = max(better, key=lambda put_out: (put_out[0].one.arm == UNPATCHED, put_out[0].observed))
            elif against.negligible and arm not in self.extending:
                found[arm] = against, against.measures[0]
        ahead = self.ranked(arm for arm in self.patched if arm in self.extending - found.keys())
        for first, second in combinations(ahead, 2):
            against = self.compared.of(second, first)
            if not {first, second} & found.keys() and against.negligible:
                found[second] = against, against.measures[0]
        if ahead:
            against = self.compared.of(ahead[0], UNPATCHED)
            found[UNPATCHED] = against, against.better_by or against.measures[0]
        return found

    def verdict(self, *, reached: bool) -> tuple[Verdict, Arm | None, Comparison | None]:
        """The verdict, the arm to take, and what contradicts it; `reached`: the unpatched model reaches the goal."""
        ahead = self.ranked(arm for arm in self.left if arm in self.extending)
        if not self.patched:
            return Verdict.ALONE, None, None
        if ahead:
            for rival in self.left:
                if rival != ahead[0] and (opposed := self._opposed(ahead[0], rival)):
                    return Verdict.CONTRADICTION, None, opposed
            return Verdict.TAKE, ahead[0], None
        if self.left == [UNPATCHED]:
            worse = all(self.compared.of(UNPATCHED, arm).better_by for arm in self.patched)
            return (Verdict.WORSE if worse else Verdict.NOTHING), None, None
        for arm in self.left:
            if arm != UNPATCHED and (opposed := self._opposed(arm, UNPATCHED)):
                return Verdict.CONTRADICTION, None, opposed
        return (Verdict.NOTHING if reached else Verdict.FEW), None, None

    def _opposed(self, one: Arm, other: Arm) -> Comparison | None:
        """The comparison of two arms that are the opposite of one another, the one that finds more first."""
        found = self.compared.of(one, other)
        if not found.opposed:
            return None
        return found if found.signs[FIND] > 0 else self.compared.of(other, one)

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
    verdict, arm, opposed = race.verdict(reached=_reaches(bounds[UNPATCHED], tested))
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
    return max(
        (arm for arm in race.left if arm != UNPATCHED), key=lambda arm: race.compared.of(arm, UNPATCHED).observed
    )


def _need(race: Race, verdict: Verdict, leader: Arm, ties: Sequence[Comparison]) -> Need | None:
    """What would tell the leader from the unpatched model; or the one to take from the nearest that ties with it."""
    if verdict is Verdict.FEW:
        return need_of(race.compared.of(leader, UNPATCHED))
    if not ties:
        return None
    return need_of(max(ties, key=lambda tie: [*map(abs, tie.observed)]))


def _standing(race: Race, one: Evidence, leader: Arm, bounds: tuple[Bounds | None, Bounds | None]) -> Standing:
    arm, runs = one.arm, one.reaches
    against = race.compared.of(arm, UNPATCHED) if runs and arm != UNPATCHED else None
    # other arms have theirs at different lengths, so that the unpatched model has read those of all
    windows = [len(race.compared.of(other, UNPATCHED).windows) for other in race.patched] if arm == UNPATCHED else []
    return Standing(
        arm=arm,
        find=float(one.found.mean()) if runs and one.found.size else None,
        rounds=len(one.found) if one.found.size else 0,
        windows=max(windows, default=len(one.read)),
        gain=None if against is None else against.find,
        read_gain=None if against is None else against.read,
        against_leader=tuple(race.compared.of(arm, leader).known) if runs and arm != leader else (),
        found_to=bounds[0],
        read_to=bounds[1],
        extends=arm in race.extending,
        reaches=runs,
        can_win=arm in race.left,
        dropped_by=None if arm not in race.dropped else race.dropped[arm][0].by(race.dropped[arm][1]),
    )
