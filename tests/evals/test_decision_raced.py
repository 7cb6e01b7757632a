"""What the first decision of a race claims is true in all but 5 % of evaluations of which the truth is known."""

import numpy as np
import pytest
from claims import plant_intervals_of_one_look, wrong_share
from synthetic import GOAL, INSIDE, World, world

from ropescale.evals.decision.verdict import Decision, Race, Verdict, judge
from ropescale.evals.results import UNPATCHED


def raced(made: World, windows: int = 2) -> tuple[Decision, int]:
    """The first decision where arms are given one round after the other until they are out; and after how many.

    With every round one more window is read, after so many to begin with; none where these are negative.
    """
    most = len(made.answers[UNPATCHED])
    rounds = {truth.arm: 0 for truth in made.truths}
    running = set(rounds)
    for number in range(1, most + 1):
        rounds |= dict.fromkeys(running, number)
        evidence = made.evidence(rounds, number + windows if windows >= 0 else 0)
        race = Race(evidence)
        running &= {*race.left}
        if race.verdict(reached=False)[0] is not Verdict.FEW or number == most:
            break
    return judge(evidence, goal=GOAL, tested=GOAL), number


@pytest.mark.parametrize("evaluations", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_claims_of_the_first_decision_of_a_race_are_wrong_in_at_most_5_percent_of_evaluations(evaluations):
    assert wrong_share(lambda made: raced(made)[0], range(2000, 2000 + evaluations)) <= 0.05


def test_with_intervals_of_95_percent_each_far_more_claims_are_wrong(monkeypatch):
    plant_intervals_of_one_look(monkeypatch)
    assert wrong_share(lambda made: raced(made)[0], range(4000, 4100)) > 0.2


@pytest.mark.parametrize(("arms", "most"), [(2, 40), (7, 60)])
def test_how_many_prompts_tell_an_arm_that_finds_85_percent_from_those_that_find_40(arms, most):
    needed = []
    for seed in range(30):
        made = world(seed, rates=(0.4, 0.85, *(0.4,) * (arms - 2)))
        decision, rounds = raced(made, windows=-1)
        assert decision.verdict is Verdict.TAKE
        assert decision.arm == made.truths[1].arm
        needed.append(rounds * made.answers[UNPATCHED][0, INSIDE:].size)
    assert np.median(needed) <= most
