"""Intervals that may be looked at after every round are wrong at most as often as they say."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ropescale.errors import InvalidArgumentError
from ropescale.evals import anytime
from ropescale.evals.anytime import Tally
from ropescale.evals.statistics import wilson

UNLIKE = np.array([0.99, 0.9, 0.4, 0.05])  # the rates of strata that have little in common
ROUNDS = 60


def answered(rates, *, rounds=ROUNDS, runs=250, seed=0):
    """Right or wrong of [runs, rounds, strata]."""
    return (np.random.default_rng(seed).random((runs, rounds, len(rates))) < rates).astype(float)


def ever_wrong(interval, scores, truth, *, looks=range(1, ROUNDS + 1)):
    """The share of runs in which the interval misses the truth after any of the rounds at which it is looked at."""
    wrong = [any(not low <= truth <= high for low, high in (interval(run[:n]) for n in looks)) for run in scores]
    return float(np.mean(wrong))


def bets(weights=None, error=0.05, low=0.0, high=1.0):
    def interval(scores):
        found = anytime.bounded_mean(Tally.of(scores, weights), error, low, high)
        return found.low, found.high

    return interval


@pytest.mark.parametrize("rates", [UNLIKE, np.full(4, 0.85), np.array([0.97])], ids=["unlike", "alike", "one"])
def test_a_mean_of_right_and_wrong_is_held_after_every_round(rates):
    assert ever_wrong(bets(), answered(rates), rates.mean(), looks=range(2, ROUNDS + 1, 2)) <= 0.05


def test_weighted_strata_are_held_to_their_weighted_average():
    weights = [4.0, 2.0, 1.0, 1.0]
    truth = float(np.average(UNLIKE, weights=weights))
    assert ever_wrong(bets(weights), answered(UNLIKE), truth, looks=range(3, ROUNDS + 1, 3)) <= 0.05
    # the plain average is another one, which many rounds refute: the weights count
    assert not anytime.at_least(Tally.of(answered(UNLIKE, rounds=400, runs=1)[0], weights), 0.025) <= UNLIKE.mean()


def test_an_interval_of_one_look_is_wrong_too_often_where_it_is_looked_at_after_every_round():
    rates = np.full(4, 0.85)
    assert ever_wrong(lambda scores: wilson(scores.sum(), scores.size), answered(rates), 0.85) > 0.1


def test_differences_between_arms_and_fractions_of_a_score_are_held_too():
    rng = np.random.default_rng(1)
    difficulty = rng.random((150, ROUNDS, 3))  # shared by both arms, so that most prompts are ties
    first = (difficulty < 0.8) * rng.choice([0.25, 0.5, 1.0], difficulty.shape)
    second = (difficulty < 0.6) * rng.choice([0.25, 0.5, 1.0], difficulty.shape)
    truth = (0.8 - 0.6) * (1.75 / 3)
    assert ever_wrong(bets(low=-1.0), first - second, truth, looks=range(3, ROUNDS + 1, 3)) <= 0.05


def test_what_both_arms_answer_alike_changes_little():
    told = [[1.0]] * 8 + [[0.0]] * 2
    ties = [*told, *[[0.0]] * 40]
    assert anytime.at_least(Tally.of(told), 0.05, -1.0) > 0
    assert anytime.at_least(Tally.of(ties), 0.05, -1.0) > 0


def test_the_capital_is_the_product_that_it_is_said_to_be():
    scores, weights = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, 1.0]]), (0.5, 1.5)
    for error in (0.05, 0.3):
        bound = anytime.at_least(Tally.of(scores, weights), error, -1.0)

        def capital(mean):
            stakes = [share / (max(weights) * (mean + 1)) for share in anytime.BETS]
            return np.mean([
                math.prod(1 + stake * w * (x - mean) for row in scores for x, w in zip(row, weights, strict=True))
                for stake in stakes
            ])  # fmt: skip

        assert capital(bound - 1e-5) >= 1 / error >= capital(bound + 1e-5)


def test_all_right_and_all_wrong_leave_the_end_inside():
    right, wrong = (anytime.bounded_mean(Tally.of([[score]] * 3), 0.05) for score in (1.0, 0.0))
    assert 0 < right.low < right.value == right.high == 1
    assert 0 == wrong.low == wrong.value < wrong.high < 1
    assert wrong.high == pytest.approx(1 - right.low)


def test_no_rounds_tell_nothing():
    found = anytime.bounded_mean(Tally.of(np.zeros((0, 3))), 0.05)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)


def test_how_many_rounds_decide_is_what_decides():
    scores = [[1.0]] * 6 + [[-1.0]] * 2 + [[0.0]] * 2
    rounds = anytime.rounds_until(Tally.of(scores), 0.0, 0.01, -1.0)
    assert rounds > len(scores)
    tally = Tally.of(scores)
    assert (
        anytime.at_least(tally.after(rounds), 0.01, -1.0) >= 0 > anytime.at_least(tally.after(rounds - 1), 0.01, -1.0)
    )
    assert anytime.rounds_until(Tally.of([[-x for x in row] for row in scores]), 0.0, 0.01, -1.0) == rounds
    assert anytime.rounds_until(Tally.of([[1.0], [-1.0]]), 0.0, 0.01, -1.0) is None


@pytest.mark.parametrize(
    ("scores", "weights"), [([1.0, 0.0], None), ([[math.nan]], None), ([[1.0]], [0.0]), ([[1.0]], [1.0, 1.0])]
)
def test_what_is_no_table_of_scores_is_refused(scores, weights):
    with pytest.raises(InvalidArgumentError, match=r"^tally: .*; leave out"):
        Tally.of(scores, weights)


def mixed(effects, weights, values):
    """The density of observations under the right-Haar prior of the deviation, summed over it and over effects."""
    deviations = np.exp(np.linspace(-6, 5, 400))[:, None]
    density = np.ones((len(deviations), len(effects)))
    for value in values:
        density *= stats.norm.pdf(value, effects * deviations, deviations)
    return float((density @ weights).sum())


@pytest.mark.parametrize("values", [[0.4, 1.1, 0.7, 0.2], [0.9, 1.1, 1.3, 0.8, 1.05]])
def test_the_ends_of_an_interval_of_losses_are_where_the_mixture_refutes(values):
    """The likelihood ratio of the mixture, integrated directly, is 1 / error at a mean at either end."""
    effects = np.linspace(-60, 60, 2401)
    prior = stats.norm.pdf(effects, 0, math.sqrt(1 / anytime.PRIOR_WEIGHT)) * (effects[1] - effects[0])
    for error in (0.2, 0.05):
        found = anytime.location(values, error)
        if not math.isfinite(found.low):
            continue
        for end in (found.low, found.high):
            moved = np.array(values) - end
            ratio = mixed(effects, prior, moved) / mixed(np.zeros(1), np.ones(1), moved)
            assert ratio == pytest.approx(1 / error, rel=1e-3)


def test_losses_are_held_after_every_window():
    drawn = np.random.default_rng(2).normal(0.3, 2.0, (400, 200))
    assert ever_wrong(lambda values: anytime.location(values, 0.05)[1:], drawn, 0.3, looks=range(1, 201)) <= 0.05


def test_an_interval_of_one_look_at_losses_is_wrong_too_often():
    drawn = np.random.default_rng(2).normal(0.3, 2.0, (200, 100))

    def students(values):
        if len(values) < 2:
            return -math.inf, math.inf
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
        return values.mean() - half, values.mean() + half

    assert ever_wrong(students, drawn, 0.3) > 0.15


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [0.1, math.inf, 0.2, 0.3, 0.1, 0.2]])
def test_too_few_losses_or_one_without_end_tell_nothing(values):
    found = anytime.location(values, 0.01)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_how_many_windows_decide_is_what_decides():
    values = np.array([0.5, -0.4, 0.9, 0.3, -0.1, 0.6])
    needed = anytime.observations_until(values, 0.0, 0.01)
    assert needed > len(values)

    def told(n):
        """Whether n windows of the same mean and spread leave 0 outside."""
        base = np.array(list(itertools.islice(itertools.cycle([-1.0, 1.0]), n - n % 2)) + [0.0] * (n % 2))
        drawn = values.mean() + base / base.std(ddof=1) * values.std(ddof=1)
        return anytime.location(drawn, 0.01).low > 0

    assert told(needed)
    assert not told(needed - 1)
