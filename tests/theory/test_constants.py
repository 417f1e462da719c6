"""The explicit constants: exact moment generating functions, tails that dominate, a union bound that holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from draws import realised_slack
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from margincast.theory.constants import (
    BERNSTEIN_C,
    concentration_terms,
    log_chernoff,
    log_concentration_failure,
    log_mgf_inner_product,
    log_mgf_square,
    log_tail_inner_product,
    log_tail_normal,
    log_tail_square,
)
from margincast.theory.distribution import preference_distribution


def log_mgf_of_quadratic_form(A: np.ndarray, b: np.ndarray, s: float) -> float:
    """log E exp(s (z^T A z + b^T z)), z standard normal: the textbook determinant formula, for any symmetric A."""
    matrix = np.eye(len(b)) - 2.0 * s * A
    return float(-0.5 * np.linalg.slogdet(matrix)[1] + 0.5 * s**2 * b @ np.linalg.solve(matrix, b))


vectors = st.integers(1, 5).flatmap(
    lambda d: st.tuples(*[st.lists(st.floats(-2, 2), min_size=d, max_size=d).map(np.array) for _ in range(2)])
)


@given(means=vectors, noise=st.floats(0.05, 2.0), kappa=st.floats(-0.95, 0.95))
@settings(deadline=None)
def test_the_mgf_of_an_inner_product_is_exact(means: tuple, noise: float, kappa: float) -> None:
    m, n = means
    d = len(m)
    half = np.zeros((2 * d, 2 * d))
    half[:d, d:] = half[d:, :d] = 0.5 * np.eye(d)
    expected = log_mgf_of_quadratic_form(noise**2 * half, noise * np.concatenate([n, m]), kappa / noise**2)
    ours = log_mgf_inner_product(kappa, float((m + n) @ (m + n)), float((m - n) @ (m - n)), d, noise)
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(means=vectors, noise=st.floats(0.05, 2.0), kappa=st.floats(-2.0, 0.45))
@settings(deadline=None)
def test_the_mgf_of_a_square_is_exact(means: tuple, noise: float, kappa: float) -> None:
    m = means[0]
    d = len(m)
    expected = log_mgf_of_quadratic_form(noise**2 * np.eye(d), 2.0 * noise * m, kappa / noise**2) - kappa * d
    assert log_mgf_square(kappa, float(m @ m), d, noise) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(d=st.integers(1, 200), noise=st.floats(0.01, 1.0), norm_sq=st.floats(0.1, 3.0), z=st.floats(0.2, 12.0))
@settings(deadline=None)
def test_the_tail_of_a_square_dominates_the_noncentral_chi_square(
    d: int, noise: float, norm_sq: float, z: float
) -> None:
    distance = z * math.sqrt(4.0 * noise**2 * norm_sq + 2.0 * d * noise**4)
    exact = stats.ncx2(d, norm_sq / noise**2)
    centre = (norm_sq + d * noise**2) / noise**2
    shift = distance / noise**2
    probability = exact.sf(centre + shift) + (exact.cdf(centre - shift) if shift < centre else 0.0)
    bound = log_tail_square(distance, norm_sq, d, noise)
    assert math.exp(bound) >= probability * (1.0 - 1e-6)
    if 3.0 <= z <= 6.0 and d * noise**2 < 0.1:  # nearly Gaussian
        assert bound <= math.log(2.0) - 0.3 * z**2


@pytest.mark.parametrize(("sum_sq", "difference_sq"), [(4.64, 0.0), (0.64, 4.0), (2.64, 2.0)])
def test_the_tail_of_an_inner_product_dominates_sampling_and_is_not_far_above(
    sum_sq: float, difference_sq: float
) -> None:
    d, noise, count = 30, 0.2, 200_000
    rng = np.random.default_rng(0)
    m, n = np.zeros(d), np.zeros(d)
    m[0] = n[0] = math.sqrt(sum_sq) / 2.0
    m[1], n[1] = math.sqrt(difference_sq) / 2.0, -math.sqrt(difference_sq) / 2.0
    x, y = m + noise * rng.standard_normal((count, d)), n + noise * rng.standard_normal((count, d))
    gap = np.abs(np.einsum("ij,ij->i", x, y) - m @ n)
    for distance in np.quantile(gap, [0.9, 0.99, 0.999]):
        frequency = (gap > distance).mean()
        bound = math.exp(log_tail_inner_product(float(distance), sum_sq, difference_sq, d, noise))
        assert frequency <= bound <= 12.0 * frequency


def test_the_bernstein_constant_is_the_largest_that_serves() -> None:
    """With x = rho d: rates of a product sum and of both chi-square tails against c rho min(1, rho)."""
    rho = np.geomspace(1e-4, 1e4, 4001)
    target = rho * np.minimum(1.0, rho)
    above = (rho - np.log1p(rho)) / 2.0
    kappa = (np.sqrt(1.0 + 4.0 * rho**2) - 1.0) / (2.0 * rho)
    product = kappa * rho + 0.5 * np.log1p(-(kappa**2))
    below = np.where(rho < 1.0, (-rho - np.log1p(-np.minimum(rho, 1.0 - 1e-16))) / 2.0, np.inf)
    for rate in (above, product, below):
        assert (rate >= BERNSTEIN_C * target * (1.0 - 1e-7) - 1e-15).all()
    assert (above / target).min() == pytest.approx(BERNSTEIN_C, rel=1e-6)  # attained at rho = 1


@given(rho=st.floats(0.01, 100.0), d=st.integers(1, 1000))
@settings(deadline=None)
def test_the_numerical_chernoff_rate_meets_the_closed_form(rho: float, d: int) -> None:
    ours = log_chernoff(lambda k: log_mgf_square(k, 0.0, d, 1.0), rho * d, 0.5)
    assert ours == pytest.approx(-d * (rho - math.log1p(rho)) / 2.0, rel=1e-6)


def test_a_normal_tail_is_exact() -> None:
    assert math.exp(log_tail_normal(1.959963984540054, 1.0)) == pytest.approx(0.05)
    assert log_tail_normal(80.0, 2.0) == pytest.approx(math.log(2.0) + stats.norm.logsf(40.0))


def test_the_union_bound_counts_every_inner_product_the_kernel_reads() -> None:
    distribution = preference_distribution(4, 3, 10, 0.2, 0.1, "chain", 3)
    counts = [term.count for term in concentration_terms(distribution, 0.1)]
    clusters = distribution.training_set(1.0, 0).clusters.tolist()
    expected = [0, 0, 0, 0, 0]
    for i, a in enumerate(clusters):
        for j, b in enumerate(clusters[: i + 1]):
            if i == j:
                expected[0] += 1
            elif a == b:
                expected[1] += 1
            elif a // 2 == b // 2:
                expected[2] += 1
            elif b // 2 in distribution.interacting[a // 2]:
                expected[3] += 1
        expected[4] += sum(c // 2 == a // 2 or c // 2 in distribution.interacting[a // 2] for c in range(8))
    assert counts == expected


def test_draws_leave_the_event_no_more_often_than_the_bound_says() -> None:
    distribution = preference_distribution(2, 4, 10, 0.3, 0.1, "chain")
    slacks = []
    for seed in range(2000):
        draw = distribution.training_set(1.0, seed)
        slacks.append(realised_slack(distribution, draw.space.features, draw.clusters))
    for slack in np.quantile(slacks, [0.5, 0.9, 0.99]):
        frequency = float(np.mean(np.array(slacks) > slack))
        bound = math.exp(log_concentration_failure(distribution, float(slack)))
        assert frequency <= bound <= 40.0 * frequency
