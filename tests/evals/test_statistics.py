"""Intervals and effective lengths, against scipy and against what can be said by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from ropescale.errors import InvalidArgumentError
from ropescale.evals.statistics import (
    band_edges,
    effective_length,
    kept_length,
    paired_bootstrap,
    perplexity,
    perplexity_ratio,
    wilson,
)

EXACT_Z = float(stats.norm.ppf(0.975))


@pytest.mark.parametrize(("found", "asked"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (499, 500), (1, 2000)])
def test_the_interval_of_a_share_is_that_of_scipy(found: int, asked: int) -> None:
    expected = stats.binomtest(found, asked).proportion_ci(method="wilson")
    assert wilson(found, asked, z=EXACT_Z) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_share_uses_1_96_by_default() -> None:
    assert wilson(8, 10) == pytest.approx((0.490157, 0.943319), abs=1e-6)


def test_none_and_all_are_bounds_of_their_own_intervals() -> None:
    assert wilson(0, 7)[0] == 0
    assert wilson(7, 7)[1] == 1


def test_a_share_that_is_right_in_part_lies_between_its_neighbours() -> None:
    low, half, high = wilson(3, 10), wilson(3.5, 10), wilson(4, 10)
    assert low[0] < half[0] < high[0]
    assert low[1] < half[1] < high[1]


@pytest.mark.parametrize(("found", "asked"), [(1, 0), (-1, 5), (6, 5)])
def test_an_impossible_share_is_refused(found: int, asked: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        wilson(found, asked)
    assert str(caught.value) == (
        f"wilson: found must be from 0 to asked, and asked at least 1, got found {found} of {asked}; "
        f"leave out what nobody was asked for"
    )


@pytest.mark.parametrize("kind", ["right or wrong", "right in part"])
def test_the_paired_interval_is_that_of_scipy(kind: str) -> None:
    generator = np.random.default_rng(5)
    steps = 1 if kind == "right or wrong" else 4
    before = generator.integers(0, steps + 1, 80) / steps
    after = np.maximum(before, generator.integers(0, steps + 1, 80) / steps)
    mean, low, high = paired_bootstrap(before.tolist(), after.tolist(), seed=1, resamples=20_000)
    expected = stats.bootstrap(
        (after - before,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert mean == pytest.approx(float((after - before).mean()))
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert high - low > 0.1


def test_pairing_narrows_the_interval_of_arms_that_fail_alike() -> None:
    before = [0.0, 1.0] * 50
    after = [0.0, 1.0] * 48 + [1.0, 1.0] * 2
    difference, low, high = paired_bootstrap(before, after)
    assert difference == pytest.approx(0.02)
    assert low >= 0
    assert high - low < 0.06 < 2 * 1.96 * math.sqrt(2 * 0.25 / 100)  # what two independent samples would have


def test_resampling_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    before, after = [0.0] * 40, [0.0, 1.0] * 20
    assert paired_bootstrap(before, after, seed=3) == paired_bootstrap(before, after, seed=3)
    assert paired_bootstrap(before, after, seed=3, resamples=50) != paired_bootstrap(
        before, after, seed=4, resamples=50
    )


def test_samples_that_do_not_pair_are_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        paired_bootstrap([1.0], [1.0, 0.0])
    assert str(caught.value) == (
        "paired_bootstrap: before and after must hold a score for each of the same samples, got 1 and 2; "
        "compare arms that ran on the same samples"
    )


def test_the_ratio_of_perplexities_is_token_weighted_and_its_interval_that_of_scipy() -> None:
    generator = np.random.default_rng(7)
    tokens = generator.integers(10, 200, 60)
    before = tokens * generator.normal(3.0, 0.5, 60)
    after = before + tokens * generator.normal(0.05, 0.1, 60)
    ratio, low, high = perplexity_ratio(before.tolist(), after.tolist(), tokens.tolist(), seed=1, resamples=20_000)

    def of(before, after, tokens, axis=-1):  # type: ignore[no-untyped-def]
        return np.exp((after.sum(axis) - before.sum(axis)) / tokens.sum(axis))

    expected = stats.bootstrap(
        (before, after, tokens),
        of,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ratio == pytest.approx(
        perplexity(after.sum(), int(tokens.sum())) / perplexity(before.sum(), int(tokens.sum()))
    )
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=2e-3)
    assert high - low > 0.02


def test_a_ratio_of_losses_that_are_no_numbers_is_none() -> None:
    assert all(map(math.isnan, perplexity_ratio([1.0, 1.0], [math.nan, 1.0], [1, 1])))


def test_a_ratio_over_no_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        perplexity_ratio([], [], [])
    assert str(caught.value) == (
        "perplexity_ratio: before, after and tokens must be of the same blocks and hold tokens, got 0, 0 and 0 "
        "blocks of 0 tokens; compare arms that ran on the same texts"
    )


def test_a_perplexity_beyond_all_floats_stays_a_number() -> None:
    assert perplexity(1e6, 10) == math.exp(700)
    assert math.isnan(perplexity(0.0, 0))


@pytest.mark.parametrize(
    ("scores", "length"),
    [
        ({4096: 0.9, 8192: 0.856, 16384: 0.8559}, 8192),
        ({4096: 0.8, 8192: 0.99}, 0),  # a longer length does not make up for a shorter one
        ({16384: 0.9, 4096: 0.9, 8192: 0.5}, 4096),  # in any order
        ({4096: math.nan}, 0),
        ({}, 0),
    ],
)
def test_the_effective_length_counts_all_shorter_ones(scores: dict[int, float], length: int) -> None:
    assert effective_length(scores) == length


def test_perplexity_keeps_to_the_first_band_where_it_is_too_high() -> None:
    assert kept_length({128: 20.0, 256: 25.0, 512: 26.0, 1024: 20.0}, 25.0) == 256
    assert kept_length({128: 26.0}, 25.0) == 0
    assert kept_length({128: math.nan}, 25.0) == 0


@pytest.mark.parametrize(
    ("reach", "edges"),
    [
        (96, [96]),
        (128, [128]),
        (192, [128, 160, 192]),
        (256, [128, 256]),
        (384, [128, 256, 384]),
        (1024, [128, 256, 512, 1024]),
    ],
)
def test_bands_double_beyond_the_original_length(reach: int, edges: list[int]) -> None:
    assert band_edges(128, reach) == edges


def test_over_a_single_text_there_is_no_interval() -> None:
    """Its buckets are no sample of texts, however many they are; over two texts there is one."""
    before, after, tokens = [10.0, 20.0, 30.0, 40.0], [11.0, 20.0, 33.0, 41.0], [8, 8, 8, 8]
    alone = perplexity_ratio(before, after, tokens, blocks=1)
    two = perplexity_ratio(before, after, tokens, blocks=2)
    assert alone.value == two.value
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert two.low < two.value < two.high
    assert math.isnan(perplexity_ratio([10.0], [11.0], [8]).low)
