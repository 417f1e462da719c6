"""Mean cosines between concepts against the double loop over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from margincast.records import Pair, PairSet
from margincast.structure.cosines import centred, mean_cosines, membership, sides
from tests.oracles import mean_cosine_loop


def pair_set(concepts: list[int], answers: list[int]) -> PairSet:
    both = ((" Yes", " No"), (" No", " Yes"))
    return PairSet(
        tuple(
            Pair(f"p{k}", f"c{concept}", "q", *both[answer], source="s", line=k + 1)
            for k, (concept, answer) in enumerate(zip(concepts, answers, strict=True))
        )
    )


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=14)


@given(rows, st.integers(0, 1000), st.sampled_from([0, 1, -1]))
def test_means_are_those_of_the_double_loop(given_rows: list[tuple[int, int]], seed: int, side: int) -> None:
    pairs = pair_set(*map(list, zip(*given_rows, strict=True)))
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(pairs), 5, generator=generator, dtype=torch.float64) + 0.5
    cosines = mean_cosines(embeddings, membership(pairs, pairs.concepts, side))
    wanted = {
        concept: embeddings[[k for k, p in enumerate(pairs) if p.concept == concept and side in (0, direction(p))]]
        for concept in pairs.concepts
    }
    for i, left in enumerate(pairs.concepts):
        for j, right in enumerate(pairs.concepts):
            expected = mean_cosine_loop(wanted[left], wanted[right], same=i == j)
            assert float(cosines[i, j]) == pytest.approx(expected, rel=1e-10, abs=1e-12, nan_ok=True)


def direction(pair: Pair) -> int:
    return 1 if pair.chosen == " Yes" else -1


def test_embeddings_of_length_zero_have_no_cosine_to_give() -> None:
    """All embeddings equal: centred, they are zero, and two zero vectors are not alike at -1 / (n - 1)."""
    pairs = pair_set([0, 0, 0, 1, 1], [0, 1, 0, 1, 0])
    away = centred(torch.ones(5, 3))
    assert mean_cosines(away, membership(pairs, pairs.concepts)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_single_pair_has_no_cosine_with_itself() -> None:
    pairs = pair_set([0, 1, 1], [0, 0, 0])
    cosines = mean_cosines(torch.eye(3), membership(pairs, pairs.concepts))
    assert math.isnan(float(cosines[0, 0]))
    assert cosines[0, 1] == 0.0


def test_length_plays_no_part_and_centring_takes_the_mean_away() -> None:
    pairs = pair_set([0, 0, 1, 1], [0, 1, 0, 1])
    embeddings = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    member = membership(pairs, pairs.concepts)
    scaled = embeddings * torch.tensor([[1.0], [20.0], [0.1], [3.0]])
    assert torch.allclose(mean_cosines(embeddings, member), mean_cosines(scaled, member), rtol=1e-12)
    assert float(centred(embeddings + 7.0).mean(dim=0).abs().max()) <= 1e-14
    assert torch.allclose(centred(embeddings + 7.0), centred(embeddings), atol=1e-13)


def test_yes_is_the_positive_side() -> None:
    pairs = pair_set([0, 0, 1], [0, 1, 0])
    assert sides(pairs).tolist() == [1, -1, 1]
    assert membership(pairs, pairs.concepts, 1).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert membership(pairs, pairs.concepts, -1).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
