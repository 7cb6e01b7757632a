"""What a decision claims is true in all but 5 % of evaluations of which the truth is known, also where they race."""

import math

import numpy as np
import pytest
from scipy.stats import t
from synthetic import GOAL, INSIDE, LENGTHS, World, world

from ropescale.evals.decision import comparison, lengths
from ropescale.evals.decision.verdict import Decision, Race, Verdict, judge
from ropescale.evals.results import UNPATCHED
from ropescale.evals.statistics import PERPLEXITY_TOLERANCE, RULER_THRESHOLD, Estimate, effective_length

PROMPTS = (5, 10, 20, 50, 100)  # a length
NOTICED = {"find": 0.05, "read": math.log(1.02)}  # what counts as a difference, as the report states it


def gain(made: World, measure: str, one, other) -> float:
    """How much better one arm truly is than another."""
    truths = {truth.arm: truth for truth in made.truths}
    if measure == "find":
        return truths[one].found - truths[other].found
    return truths[other].read - truths[one].read


def false_claims(decision: Decision, made: World) -> list[str]:
    """What a decision says and is not so."""
    wrong = []

    def holds(difference) -> None:
        """An interval says which way, or that it is no more than makes a difference."""
        truth = gain(made, difference.measure, difference.arm, difference.against)
        if not difference.estimate.low <= truth <= difference.estimate.high:
            wrong.append(f"{difference.arm.label} over {difference.against.label} by {difference.measure}")

    for standing in decision.standings:
        for difference in (standing.gain, standing.read_gain, standing.dropped_by, *standing.against_leader):
            if difference is not None:
                holds(difference)
        if standing.extends and max(gain(made, by, standing.arm, UNPATCHED) for by in NOTICED) <= 0:
            wrong.append(f"{standing.arm.label} extends")
        [truth] = [one for one in made.truths if one.arm == standing.arm]
        averages = dict(zip(LENGTHS, truth.rates.mean(axis=1), strict=True))
        reached = dict(zip(LENGTHS, -truth.losses, strict=True))
        for bounds, truly in (
            (standing.found_to, effective_length(averages, RULER_THRESHOLD)),
            (standing.read_to, effective_length(reached, -math.log(PERPLEXITY_TOLERANCE))),
        ):
            if bounds.low > truly:
                wrong.append(f"{standing.arm.label} at least {bounds.low}")
            if bounds.high is not None and bounds.high < truly:
                wrong.append(f"{standing.arm.label} at most {bounds.high}")
    if decision.verdict is Verdict.NOTHING and decision.standings[0].found_to.low < GOAL:
        wrong += [
            f"nothing over {one.arm.label}"
            for one in decision.standings[1:]
            if one.dropped_by is not None
            and one.dropped_by.arm == one.arm
            and any(gain(made, by, one.arm, UNPATCHED) > least for by, least in NOTICED.items())
        ]
    return wrong


def fixed(made: World) -> Decision:
    """The decision on all prompts that there are."""
    rounds = {truth.arm: len(made.answers[truth.arm]) for truth in made.truths}
    return judge(made.evidence(rounds, 99), goal=GOAL, tested=GOAL)


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


def wrong_share(decided, seeds: range) -> float:
    """The share of evaluations of which anything is claimed that is not so."""
    wrong = 0
    for seed in seeds:
        made = world(seed, most=PROMPTS[seed % len(PROMPTS)])
        wrong += bool(false_claims(decided(made), made))
    return wrong / len(seeds)


def test_claims_of_a_fixed_grid_are_wrong_in_at_most_5_percent_of_evaluations():
    assert wrong_share(fixed, range(2000)) <= 0.05


def test_claims_of_the_first_decision_of_a_race_are_wrong_in_at_most_5_percent_of_evaluations():
    assert wrong_share(lambda made: raced(made)[0], range(2000, 4000)) <= 0.05


def plant_intervals_of_one_look(monkeypatch):
    """Put in the place of all intervals those of 95 % each, which hold for one look at one of them."""

    def half(tally):
        size = sum(tally.counts)
        square = sum(n * x * x for x, n in zip(tally.scores, tally.counts, strict=True)) / size
        return 1.96 * math.sqrt(max(square - tally.mean**2, 0) / size)

    def exceeds(tally, mean, error, low=0.0):
        return sum(tally.counts) > 0 and tally.mean - half(tally) > mean

    def falls_short(tally, mean, error, high=1.0):
        return sum(tally.counts) > 0 and tally.mean + half(tally) < mean

    def bounded_mean(tally, error, low, high):
        return Estimate(tally.mean, tally.mean - half(tally), tally.mean + half(tally))

    def location(values, error):
        values = np.array(list(values))
        if len(values) < 2:
            return Estimate(math.nan, -math.inf, math.inf)
        wide = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
        return Estimate(float(values.mean()), float(values.mean() - wide), float(values.mean() + wide))

    for module in (comparison, lengths):
        for planted in (exceeds, falls_short, bounded_mean, location):
            if hasattr(module, planted.__name__):
                monkeypatch.setattr(module, planted.__name__, planted)


@pytest.mark.parametrize("decided", [fixed, lambda made: raced(made)[0]], ids=["fixed", "raced"])
def test_with_intervals_of_95_percent_each_far_more_claims_are_wrong(decided, monkeypatch):
    plant_intervals_of_one_look(monkeypatch)
    assert wrong_share(decided, range(4000, 4100)) > 0.2


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
