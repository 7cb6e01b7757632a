"""What decisions on simulated evaluations claim, held against the truth that they were drawn from."""

import math

import numpy as np
from scipy.stats import t
from synthetic import GOAL, LENGTHS, World, world

from ropescale.evals.decision import comparison, lengths
from ropescale.evals.decision.verdict import Decision, Verdict
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


def wrong_share(decided, seeds: range) -> float:
    """The share of evaluations of which anything is claimed that is not so."""
    wrong = 0
    for seed in seeds:
        made = world(seed, most=PROMPTS[seed % len(PROMPTS)])
        wrong += bool(false_claims(decided(made), made))
    return wrong / len(seeds)


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
