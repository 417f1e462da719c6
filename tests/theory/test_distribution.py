"""The preference distribution: token sharing, geometry, seeds, and what it refuses."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from margincast.errors import InputError
from margincast.theory.distribution import PreferenceDistribution, assign_tokens, preference_distribution


def occurrences(responses: tuple[tuple[int, int], ...]) -> int:
    """Z by a plain loop over tokens."""
    tokens = {token for pair in responses for token in pair}
    return max(sum(token in pair for pair in responses) for token in tokens)


@given(K=st.integers(1, 40), Z=st.integers(2, 6))
def test_a_chain_shares_each_token_at_most_Z_times_and_repeats_no_pair(K: int, Z: int) -> None:
    responses = assign_tokens("chain", K, Z)
    distribution = preference_distribution(K, 1, K + 1, 0.1, 0.1, responses)
    assert len(responses) == K
    assert distribution.Z == occurrences(responses) == min(K, Z)
    assert all(check.holds for check in distribution.assumptions())
    assert distribution.S <= 2 * (distribution.Z - 1)


def test_a_long_chain_reaches_twice_Z_minus_one_interacting_concepts() -> None:
    for Z in (2, 3, 4):
        distribution = preference_distribution(4 * Z, 1, 50, 0.1, 0.1, "chain", Z)
        assert (distribution.Z, distribution.S) == (Z, 2 * (Z - 1))


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda p: p[0] != p[1]), min_size=1, max_size=8))
def test_interacting_concepts_are_those_that_share_a_token(responses: list[tuple[int, int]]) -> None:
    distribution = preference_distribution(len(responses), 1, 20, 0.1, 0.1, responses)
    linked = {(k, m) for k, m in combinations(range(len(responses)), 2) if set(responses[k]) & set(responses[m])}
    assert {(k, m) for k, members in enumerate(distribution.interacting) for m in members if k < m} == linked
    assert occurrences(tuple(responses)) == distribution.Z


def test_a_shared_pair_is_let_in_and_flagged() -> None:
    distribution = preference_distribution(4, 2, 10, 0.1, 0.1, "shared")
    (check,) = distribution.assumptions()
    assert (check.left, check.holds) == (3.0, False)
    assert (distribution.Z, distribution.S, distribution.tokens) == (4, 3, (0, 1))
    swapped = preference_distribution(2, 2, 10, 0.1, 0.1, [(0, 1), (1, 0)])
    assert not swapped.assumptions()[0].holds


def test_means_are_shared_component_plus_and_minus_orthonormal_concepts() -> None:
    distribution = preference_distribution(3, 2, 7, 0.4, 0.1)
    plus, minus = distribution.means[0::2], distribution.means[1::2]
    concepts, shared = (plus - minus) / 2, (plus + minus) / 2
    assert torch.equal(concepts @ concepts.T, torch.eye(3, dtype=torch.float64))
    assert torch.allclose(shared.norm(dim=1), torch.full((3,), 0.4, dtype=torch.float64))
    assert float((concepts @ shared.T).abs().max()) == 0.0


def test_rotated_axes_give_the_same_inner_products() -> None:
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    plain = preference_distribution(3, 2, 7, 0.4, 0.1)
    turned = PreferenceDistribution(2, 7, 0.4, 0.1, plain.responses, axes=rotation[:4])
    assert torch.allclose(plain.means @ plain.means.T, turned.means @ turned.means.T)
    with pytest.raises(InputError, match="orthogonal"):
        PreferenceDistribution(2, 7, 0.4, 0.1, plain.responses, axes=rotation[:4] * 1.01)


def test_a_training_set_has_Q_points_per_cluster_around_its_mean_with_swapped_responses() -> None:
    distribution = preference_distribution(2, 2000, 5, 0.3, 0.2, "chain")
    draw = distribution.training_set(beta=0.7, seed=3)
    assert len(draw.space) == distribution.N == 8000
    assert draw.clusters.bincount().tolist() == [2000] * 4
    for cluster in range(4):
        rows = draw.space.features[draw.clusters == cluster]
        assert torch.allclose(rows.mean(0), distribution.means[cluster], atol=5 * 0.2 / 2000**0.5)
        assert torch.allclose(rows.std(0), torch.full((5,), 0.2, dtype=torch.float64), rtol=0.1)
    plus, minus = draw.clusters == 0, draw.clusters == 1
    assert draw.space.chosen[plus].unique().tolist() == draw.space.rejected[minus].unique().tolist()


def test_the_same_seed_gives_the_same_points_and_another_seed_others() -> None:
    distribution = preference_distribution(2, 3, 5, 0.3, 0.2)
    one, two, other = (distribution.training_set(1.0, seed).space.features for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    fresh = distribution.fresh_points(4000, 1.0, 5)
    assert int(fresh.clusters.bincount().min()) > 850  # 1000 expected, sd 27


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": -0.1}, "noise"),
        ({"noise": 0.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"shared_norm": -1.0}, "shared_norm"),
        ({"Q": 0}, "Q must be at least 1"),
        ({"K": 0}, "K must be at least 1"),
        ({"K": 10}, "at most d - 1"),
        ({"tokens": "nonsense"}, "not known"),
        ({"tokens": [(0, 1)]}, "1 response pairs for K = 2"),
        ({"tokens": [(0, 1), (2, 2)]}, "two different token ids"),
        ({"tokens": "chain", "Z": 1}, "Z must be at least 2"),
    ],
)
def test_nonsense_is_refused_in_one_line(change: dict, message: str) -> None:
    arguments = {"K": 2, "Q": 3, "d": 10, "shared_norm": 0.1, "noise": 0.1} | change
    with pytest.raises(InputError, match=message) as refusal:
        preference_distribution(**arguments)
    assert "\n" not in str(refusal.value)
