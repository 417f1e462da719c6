"""Scores of forecasts with intervals: against integrals of the definition, draws, and who knows the law."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtri
from scipy.stats import norm

from margincast.scores import crps_of_accuracy, crps_of_draws, crps_of_margin, floor_of, ratio

LEVEL = 0.9
END = float(ndtri(0.95))


def by_integral(distribution, value: float, low: float, high: float) -> float:  # type: ignore[no-untyped-def]
    """The definition: the squared distance of the two distribution functions, integrated."""
    below = quad(lambda z: distribution(z) ** 2, low, value, limit=400)[0]
    return below + quad(lambda z: (1 - distribution(z)) ** 2, value, high, limit=400)[0]


@pytest.mark.parametrize("value", [0.0, 0.42, 0.7, 0.97, 1.0])
@pytest.mark.parametrize("median, spread", [(0.7, 0.05), (0.55, 0.25), (0.98, 0.1), (0.0, 0.2)])
def test_of_an_accuracy_it_is_the_integral_over_shares(median: float, spread: float, value: float) -> None:
    low, high = (float(np.clip(median + side * END * spread, 0, 1)) for side in (-1, 1))
    expected = by_integral(lambda z: norm.cdf(z, median, spread), value, 0.0, 1.0)
    assert crps_of_accuracy(median, low, high, value, LEVEL) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("value", [-3.0, 0.04, 0.3, 1.0, 8.0])
@pytest.mark.parametrize("low, median, high", [(0.1, 0.3, 0.9), (0.1, 0.3, 0.4), (-0.2, 0.3, 0.8), (0.2, 0.3, 0.40001)])
def test_of_a_margin_it_is_the_integral_under_the_law_with_these_quantiles(
    low: float, median: float, high: float, value: float
) -> None:
    ratio_of_sides = (high - median) / (median - low)
    if abs(ratio_of_sides - 1) < 1e-9:
        law = norm(median, (high - median) / END).cdf
    else:
        a, c = np.log(ratio_of_sides) / END, (high - median) / (ratio_of_sides - 1)

        def law(z: float) -> float:
            inside = 1 + (z - median) / c
            return float(norm.cdf(np.log(inside) / a)) if inside > 0 else float(a < 0)

        assert [law(z) for z in (low, median, high)] == pytest.approx([0.05, 0.5, 0.95])
    expected = by_integral(law, value, -30.0, 60.0)
    assert crps_of_margin(median, low, high, value, LEVEL) == pytest.approx(expected, abs=1e-5)


def test_of_draws_it_is_the_mean_distance_less_half_of_that_among_them() -> None:
    draws = np.array([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]])
    found = crps_of_draws(draws, [2.0, 3.5])
    among = np.abs(draws[0][:, None] - draws[0][None]).mean() / 2
    assert found == pytest.approx([np.abs(draws[0] - 2.0).mean() - among, 1.5])


@pytest.mark.parametrize("median, low, high", [(0.3, 0.1, 0.9), (0.5, 0.3, 0.7)])
def test_law_and_draws_of_it_score_alike(median: float, low: float, high: float) -> None:
    normals = np.random.default_rng(0).standard_normal(20_000)
    power = np.log((high - median) / (median - low)) / END
    bent = (high - median) / np.expm1(power * END) * np.expm1(power * normals) if power else normals * 0.2 / END
    found = crps_of_draws(median + bent, 0.8)
    assert found == pytest.approx(float(crps_of_margin(median, low, high, 0.8, LEVEL)), rel=0.02)


def test_who_knows_the_law_scores_the_floor_and_another_run_scores_twice_that() -> None:
    generator = np.random.default_rng(1)
    median, spread, worlds = 0.7, 0.08, 4000
    twins = generator.normal(median, spread, (3, worlds)).clip(0, 1)
    low, high = median - END * spread, median + END * spread
    floor = floor_of(twins)
    knows = crps_of_accuracy(*(np.full(worlds, each) for each in (median, low, high)), twins[0], LEVEL)
    assert ratio(knows, floor) == pytest.approx(1.0, abs=0.03)
    assert ratio(crps_of_draws(twins[1][:, None], twins[0]), floor) == pytest.approx(2.0, abs=0.06)
    too_sure = crps_of_accuracy(median, median - 0.01, median + 0.01, twins[0], LEVEL)
    too_wide = crps_of_accuracy(median, median - 0.5, median + 0.3, twins[0], LEVEL)
    assert min(ratio(too_sure, floor), ratio(too_wide, floor)) > 1.1


def test_without_width_it_is_the_distance_and_without_a_floor_there_is_no_ratio() -> None:
    assert crps_of_accuracy(0.6, 0.6, 0.6, 0.5, LEVEL) == pytest.approx(0.1)
    assert crps_of_margin(0.6, 0.6, 0.6, 0.5, LEVEL) == pytest.approx(0.1)
    assert np.isnan(ratio(np.array([0.1]), floor_of([[0.4], [0.4]])))
