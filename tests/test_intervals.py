"""Intervals: Wilson's against its definition, the bootstrap's coverage by simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from margincast.intervals import Estimate, bootstrap, mean_interval, proportion
from tests.oracles import wilson_by_bisection

Z = 1.959963984540054  # the normal's 97.5% point


@given(st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilsons_interval_is_where_the_score_test_just_rejects(counts: tuple[int, int]) -> None:
    estimate = proportion(*counts)
    low, high = wilson_by_bisection(*counts, Z)
    assert estimate.value == counts[0] / counts[1]
    assert estimate.low == pytest.approx(low, abs=1e-9)
    assert estimate.high == pytest.approx(high, abs=1e-9)


@pytest.mark.parametrize(
    "successes, total, low, high",
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3, to the four digits printed there.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_has_the_published_values(successes: int, total: int, low: float, high: float) -> None:
    estimate = proportion(successes, total)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_bootstrap_of_a_mean_covers_as_it_says() -> None:
    """400 samples of 60 from a skewed distribution. The percentile interval is approximate: for 60 pairs of an
    exponential its true coverage is near 92.5%, and then 89% to 97% of 400 would be missed in about 1 suite of 100."""
    generator = np.random.default_rng(0)
    inside = 0
    for number in range(400):
        sample = generator.exponential(size=60)
        estimate = mean_interval(sample, seed=number)
        inside += estimate.low <= 1.0 <= estimate.high
    assert binom.cdf(356, 400, 0.925) + binom.sf(387, 400, 0.925) < 0.01
    assert 356 < inside < 388


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    sample = np.random.default_rng(1).normal(size=400)
    estimate = mean_interval(sample)
    expected = 2 * Z * sample.std() / 20
    # 1000 resamples know their 2.5% points to about 4% of the width.
    assert estimate.high - estimate.low == pytest.approx(expected, rel=0.12)
    assert estimate.value == pytest.approx(float(sample.mean()), rel=1e-15)


def test_samples_are_resampled_together() -> None:
    x = np.arange(30.0)
    estimate = bootstrap(lambda a, b: float(np.abs(b - 2 * a).max()), x, 2 * x)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_the_seed_decides() -> None:
    sample = np.random.default_rng(2).normal(size=50)
    assert mean_interval(sample, seed=3) == mean_interval(sample, seed=3)
    assert mean_interval(sample, seed=3) != mean_interval(sample, seed=4)


def test_one_pair_says_nothing_about_its_spread() -> None:
    estimate = mean_interval(np.array([2.0]))
    assert estimate.value == 2.0
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_a_value_that_is_not_a_number_has_no_interval() -> None:
    """Resamples that happen to miss the broken pair must not lend it theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's complaints would end on the user's screen
        estimate = mean_interval(np.array([1.0, float("nan"), 2.0]))
    assert all(math.isnan(value) for value in (estimate.value, estimate.low, estimate.high))


def test_an_estimate_is_written_under_three_names() -> None:
    assert Estimate(1.0, 0.5, 2.0).as_dict() == {"value": 1.0, "low": 0.5, "high": 2.0}
