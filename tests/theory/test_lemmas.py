"""Lemmas A.1 and A.2 against plain loops, limits and random draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from margincast.theory.distribution import preference_distribution
from margincast.theory.lemmas import (
    Relation,
    measure_deviations,
    predicted_kernel,
    predicted_velocity,
    relations,
    velocity_slack,
)


def test_relations_follow_clusters_and_tokens() -> None:
    distribution = preference_distribution(3, 2, 9, 0.3, 0.1, [(0, 1), (1, 2), (5, 6)])
    clusters = distribution.training_set(1.0, 0).clusters
    table = relations(distribution, clusters)
    for i, a in enumerate(clusters.tolist()):
        for j, b in enumerate(clusters.tolist()):
            if i == j:
                expected = Relation.SELF
            elif a == b:
                expected = Relation.SAME_CLUSTER
            elif a // 2 == b // 2:
                expected = Relation.OPPOSITE_CLUSTER
            elif {a // 2, b // 2} == {0, 1}:
                expected = Relation.INTERACTING_CONCEPT
            else:
                expected = Relation.UNRELATED_CONCEPT
            assert table[i, j] == expected


@given(K=st.integers(1, 4), Q=st.integers(1, 4), shared=st.floats(0.0, 0.9), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_without_noise_the_kernel_is_what_lemma_A1_predicts(K: int, Q: int, shared: float, seed: int) -> None:
    distribution = preference_distribution(K, Q, 12, shared, 1e-9, "chain" if K > 1 else "distinct")
    for line in measure_deviations(distribution, distribution.training_set(1.0, seed), epsilon=1.0):
        limit = shared**2 if line.relation == Relation.INTERACTING_CONCEPT else 0.0
        assert line.measured <= limit + 1e-7


def test_the_self_term_is_larger_by_twice_d_v_squared_on_average() -> None:
    distribution = preference_distribution(1, 400, 50, 0.5, 0.3)
    draw = distribution.training_set(1.0, 0)
    diagonal = draw.space.kernel(draw.space).diagonal()
    predicted = predicted_kernel(distribution, 1.0)[Relation.SELF][1]
    # sd of 2|x|^2 is 2 sqrt(4 v^2 |mu|^2 + 2 d v^4), averaged over 800 points
    sd = 2 * (4 * 0.09 * 1.25 + 2 * 50 * 0.3**4) ** 0.5
    assert float(diagonal.mean()) == pytest.approx(predicted, abs=5 * sd / 800**0.5)


@given(seed=st.integers(0, 10**6), Z=st.integers(2, 4), noise=st.floats(0.002, 0.05), spread=st.floats(0.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_lemma_A2_bounds_the_velocity_wherever_lemma_A1_holds(seed: int, Z: int, noise: float, spread: float) -> None:
    distribution = preference_distribution(5, 4, 20, 0.3, noise, "chain", Z)
    draw = distribution.training_set(0.8, seed)
    kernel = draw.space.kernel(draw.space)
    probe = measure_deviations(distribution, draw, epsilon=0.0, kernel=kernel)
    # The smallest epsilon at which this draw lies in the event.
    own = max(line.measured for line in probe[:3]) / (4.0 * noise)
    crossing = max(0.0, probe[3].measured - 0.09) / (2.0 * noise)
    epsilon = max(own, crossing) * (1.0 + 1e-12)
    assert all(line.holds for line in measure_deviations(distribution, draw, epsilon, kernel))
    margins = spread * torch.randn(len(draw.space), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    velocity = 0.8**2 / distribution.N * kernel @ torch.sigmoid(-margins)
    gap = (velocity - predicted_velocity(distribution, draw.clusters, margins, 0.8)).abs().max()
    assert float(gap) <= velocity_slack(distribution, margins, 0.8, epsilon) * (1.0 + 1e-9)
