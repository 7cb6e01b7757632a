"""What a decision on a fixed grid claims is true in all but 5 % of evaluations of which the truth is known."""

import pytest
from claims import plant_intervals_of_one_look, wrong_share
from synthetic import GOAL, LENGTHS, World, world

from ropescale.evals.decision.verdict import Decision, judge
from ropescale.evals.statistics import RULER_THRESHOLD, effective_length


def fixed(made: World) -> Decision:
    """The decision on all prompts that there are."""
    rounds = {truth.arm: len(made.answers[truth.arm]) for truth in made.truths}
    return judge(made.evidence(rounds, 99), goal=GOAL, tested=GOAL)


@pytest.mark.parametrize("evaluations", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_claims_of_a_fixed_grid_are_wrong_in_at_most_5_percent_of_evaluations(evaluations):
    assert wrong_share(fixed, range(evaluations)) <= 0.05


def test_with_intervals_of_95_percent_each_far_more_claims_are_wrong(monkeypatch):
    plant_intervals_of_one_look(monkeypatch)
    assert wrong_share(fixed, range(4000, 4100)) > 0.2


def test_effective_lengths_by_what_was_observed_alone_are_wrong_far_more_often():
    """The rule that takes scores for what they estimate: two arms alike are given different lengths."""
    wrong = 0
    for seed in range(200):
        made = world(seed, rates=(0.85, 0.85))
        one, other = (
            effective_length(dict(zip(LENGTHS, answers.mean(axis=(0, 2)), strict=True)), RULER_THRESHOLD)
            for answers in made.answers.values()
        )
        wrong += one != other
    assert wrong / 200 > 0.4
