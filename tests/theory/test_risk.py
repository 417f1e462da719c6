"""Exact population risk: against sampling, in log space, and fitted on features."""

from __future__ import annotations

import math

import pytest
import torch
from draws import outside_conditions
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from margincast.errors import InputError
from margincast.frozen.flow.states import gradient_flow
from margincast.theory.distribution import preference_distribution
from margincast.theory.risk import fit_clusters, fitted_risk, population_risk

SAMPLES = 10**6


def covered(seed: int) -> bool:
    """Whether the exact risk of a random trained state lies in the 99% interval of a million fresh points."""
    generator = torch.Generator().manual_seed(seed)
    tokens = ("distinct", "chain", "shared")[seed % 3]
    it = preference_distribution(1 + seed % 3, 3, 6, 0.1 * (seed % 7), 0.35 + 0.05 * (seed % 10), tokens)
    draw = it.training_set(1.0, seed)
    time = float(10.0 ** (2.0 * torch.rand(1, generator=generator) - 1.0))
    state = gradient_flow(draw.space, [time], rtol=1e-6).states
    exact = 10.0 ** float(population_risk(it, state).log10)
    assert 1e-4 < exact < 1.0
    fresh = it.fresh_points(SAMPLES, 1.0, seed + 10**6)
    wrong = int((fresh.space.margins(state[0]) <= 0.0).sum())
    interval = stats.binomtest(wrong, SAMPLES).proportion_ci(0.99)
    return bool(interval.low <= exact <= interval.high)


def test_the_exact_risk_agrees_with_a_million_samples_for_fifty_states() -> None:
    """Each 99% interval misses with probability 1%; 4 or more of 50 would happen in less than 1 of 500 suites."""
    misses = sum(not covered(seed) for seed in range(50))
    assert misses <= stats.binom.ppf(0.998, 50, 0.01) == 3


def test_risk_is_a_sum_of_normal_tails_and_survives_where_floats_do_not() -> None:
    it = preference_distribution(1, 2, 3, 0.0, 0.03)
    state = torch.zeros(2, 3, dtype=torch.float64)
    state[0, 1], state[1, 1] = 1.0, -1.0  # along the concept: mean 2, standard deviation 0.06
    risk = population_risk(it, state)
    assert float(risk.log10[0]) == pytest.approx(float(stats.norm.logsf(2.0 / 0.06)) / math.log(10.0))
    assert -250.0 < float(risk.log10[0]) < -200.0
    it = preference_distribution(1, 2, 3, 0.0, 0.003)
    assert population_risk(it, state).log10[0] < -20000.0


def test_before_training_every_pair_counts_as_wrong_and_the_opposite_state_errs_where_the_state_does_not() -> None:
    it = preference_distribution(2, 2, 5, 0.2, 0.5)
    assert population_risk(it, torch.zeros(4, 5, dtype=torch.float64)).log10.tolist() == [0.0]
    state = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right, wrong = (10.0 ** population_risk(it, s).log10_clusters for s in (state, -state))
    assert torch.allclose(right + wrong, torch.ones_like(right))


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_risk_does_not_depend_on_the_size_of_the_state(seed: int, scale: float) -> None:
    it = outside_conditions(seed).distribution
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(3, len(it.tokens), it.d, generator=generator, dtype=torch.float64)
    one, two = population_risk(it, state), population_risk(it, scale * state)
    assert torch.allclose(one.log10_clusters, two.log10_clusters, rtol=1e-9)
    mean = torch.log10((10.0**one.log10_clusters).mean(1))
    assert torch.allclose(one.log10, mean, rtol=1e-9)


def test_clusters_fitted_on_features_give_the_risk_of_their_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(2).repeat_interleave(400)
    shift = torch.tensor([1.0, -1.0], dtype=torch.float64)[labels, None]
    features = shift + torch.randn(800, 6, generator=generator, dtype=torch.float64) @ mixing
    clusters = fit_clusters(features, labels, 1 - labels, labels)
    covariance = clusters.roots[0].T @ clusters.roots[0]
    assert torch.allclose(covariance, torch.cov(features[:400].T))
    state = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    w = state[0] - state[1]
    expected = stats.norm.logcdf(-float(w @ features[:400].mean(0)) / float(w @ covariance @ w) ** 0.5)
    assert float(fitted_risk(clusters, state).log10_clusters[0, 0]) == pytest.approx(expected / math.log(10.0))


def test_clusters_fitted_on_many_points_of_the_distribution_give_its_population_risk() -> None:
    it = preference_distribution(2, 4, 6, 0.3, 0.6)
    draw = it.training_set(1.0, 0)
    state = gradient_flow(draw.space, [1.0]).states
    many = preference_distribution(2, 50_000, 6, 0.3, 0.6).training_set(1.0, 1)
    fitted = fit_clusters(many.space.features, many.space.chosen, many.space.rejected, many.clusters)
    gap = fitted_risk(fitted, state).log10_clusters - population_risk(it, state).log10_clusters
    assert float(gap.abs().max()) < 0.02


def test_a_cluster_needs_two_pairs_and_one_response() -> None:
    features, token = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 0, 1])
    with pytest.raises(InputError, match="cluster 1 has 1 pairs"):
        fit_clusters(features, token, 1 - token, torch.tensor([0, 0, 1]))
    with pytest.raises(InputError, match="do not all have the same responses"):
        fit_clusters(features, token, 1 - token, torch.tensor([0, 0, 0]))
