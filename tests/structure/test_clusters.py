"""Estimates of the preference distribution find what was planted; token sharing is counted as Section 4.1 counts it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from margincast.records import Pair, PairSet
from margincast.structure.clusters import estimate_clusters, token_sharing


@dataclass(frozen=True)
class Planted:
    """Clusters N(b +- c_k, v^2 I), `size` pairs each; the c_k of different lengths and not orthogonal."""

    vectors: Tensor
    shared: Tensor
    noise: float
    size: int

    def draw(self, seed: int) -> tuple[Tensor, PairSet]:
        generator = torch.Generator().manual_seed(seed)
        points, pairs = [], []
        for concept, vector in enumerate(self.vectors):
            for sign, answers in ((1, (" Yes", " No")), (-1, (" No", " Yes"))):
                centre = self.shared + sign * vector
                noise = torch.randn(self.size, len(vector), generator=generator, dtype=torch.float64)
                points.append(centre + self.noise * noise)
                pairs += [Pair(f"{concept}{sign}{k}", f"c{concept}", "q", *answers, "s", k) for k in range(self.size)]
        return torch.cat(points), PairSet(tuple(pairs))


def plant(noise: float, size: int, hidden: int = 20, scale: float = 1.0) -> Planted:
    axes = torch.eye(hidden, dtype=torch.float64)
    vectors = torch.stack([2.0 * axes[0], axes[0] + 3.0 * axes[1], 4.0 * axes[2]])
    return Planted(scale * vectors, scale * (5.0 * axes[3] + 2.0 * axes[2]), scale * noise, size)


@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_noiseless_clusters_are_found_exactly(scale: float) -> None:
    planted = plant(noise=0.0, size=2, scale=scale)
    found = estimate_clusters(*planted.draw(0))
    assert found is not None
    lengths = planted.vectors.norm(dim=1)
    unit = float(lengths.mean())
    assert found.concepts == ("c0", "c1", "c2")
    assert found.unit == pytest.approx(unit, rel=1e-12)
    assert found.lengths.tolist() == pytest.approx((lengths / unit).tolist(), rel=1e-12)
    assert found.shared_norm == pytest.approx(float(planted.shared.norm()) / unit, rel=1e-12)
    assert found.noise == pytest.approx(0.0, abs=1e-12)
    assert found.gram[0, 1] == pytest.approx(10**-0.5, rel=1e-12)
    assert found.gram[0, 2] == pytest.approx(0.0, abs=1e-12)
    assert found.angle_with_shared.tolist() == pytest.approx([0.0, 0.0, 2 / 29**0.5], abs=1e-12)
    assert found.midpoint_spread == pytest.approx(0.0, abs=1e-12)
    assert found.smallest_cluster == 2


def test_noisy_clusters_are_found_within_their_standard_errors() -> None:
    """Means over 40 draws lie within 4 of their own standard errors of the truth: 1 suite in 2,000 would miss one."""
    planted = plant(noise=0.8, size=50)
    draws = [estimate_clusters(*planted.draw(seed)) for seed in range(40)]
    unit = float(planted.vectors.norm(dim=1).mean())
    truth = {
        "unit": unit,
        "noise": 0.8 / unit,
        "noise_energy": 20 * 0.64 / unit**2,
        "shared_norm": float(planted.shared.norm()) / unit,
    }
    for name, value in truth.items():
        found = torch.tensor([getattr(draw, name) for draw in draws], dtype=torch.float64)
        assert abs(float(found.mean()) - value) <= 4 * float(found.std()) / 40**0.5, name
    # The angles are those of noisy vectors: off by a relative d v^2 / (4 Q |c|^2), some tenths of a percent here.
    gram = torch.stack([draw.gram for draw in draws if draw]).mean(dim=0)
    assert float(gram[0, 1]) == pytest.approx(10**-0.5, abs=0.02)
    assert float(gram[0, 2]) == pytest.approx(0.0, abs=0.02)


def test_noise_does_not_pass_for_distance() -> None:
    """Pure noise, no concept at all. Unbiased, the squared length is below zero about every second time (and then there
    is nothing to estimate); without the correction it would be about d v^2 / (2 Q) = 0.5 and never below zero."""
    nothing = Planted(torch.zeros(1, 40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64), 0.5, 10)
    draws = [estimate_clusters(*nothing.draw(seed)) for seed in range(200)]
    empty = sum(draw is None for draw in draws)
    assert 70 <= empty <= 130  # within 4.2 standard deviations of a half; chi-square with 40 degrees of freedom: 0.53
    squares = torch.tensor([draw.unit**2 for draw in draws if draw])
    assert float(squares.max()) < 0.5


def test_squared_lengths_are_unbiased_where_noise_is_as_large_as_the_concept() -> None:
    planted = Planted(torch.eye(30, dtype=torch.float64)[:1], torch.zeros(30, dtype=torch.float64), 0.6, 8)
    squares = torch.tensor([found.unit**2 for seed in range(200) if (found := estimate_clusters(*planted.draw(seed)))])
    standard_error = float(squares.std()) / len(squares) ** 0.5
    naive_bias = 30 * 0.36 / (2 * 8)
    assert len(squares) == 200
    assert abs(float(squares.mean()) - 1.0) <= 4 * standard_error
    assert 4 * standard_error < naive_bias / 3  # the test could tell


def test_effective_dimension_of_round_and_of_flat_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = Planted(torch.zeros(1, 6), torch.zeros(6), 1.0, 4000).draw(0)[1]
    noise = torch.randn(8000, 6, generator=generator, dtype=torch.float64)
    direction = torch.tensor([[1.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    sign = torch.tensor([1.0] * 4000 + [-1.0] * 4000, dtype=torch.float64)[:, None]
    round_noise = estimate_clusters(noise + sign * direction, pairs)
    stretched = estimate_clusters(noise * torch.tensor([1, 1, 1e-3, 1e-3, 1e-3, 1e-3]) + sign * direction, pairs)
    assert round_noise is not None
    assert stretched is not None
    assert round_noise.effective_dimension == pytest.approx(6.0, rel=0.01)
    assert stretched.effective_dimension == pytest.approx(2.0, rel=0.01)


def test_few_points_in_many_dimensions_give_the_same_dimension_either_way() -> None:
    """More dimensions than points: the small Gram matrix has the same traces as the covariance."""
    points, pairs = plant(noise=0.5, size=3, hidden=40).draw(0)
    found = estimate_clusters(points, pairs)
    assert found is not None
    within = torch.cat([group - group.mean(dim=0) for group in points.split(3)])
    covariance = within.T @ within
    expected = float(covariance.trace() ** 2 / (covariance @ covariance).trace())
    assert found.effective_dimension == pytest.approx(expected, rel=1e-10)


def test_concepts_without_two_clusters_of_two_are_left_out() -> None:
    points, pairs = plant(noise=0.1, size=4).draw(0)
    keep = [k for k, pair in enumerate(pairs) if not (pair.concept == "c1" and pair.chosen == " No" and pair.line > 0)]
    found = estimate_clusters(points[keep], PairSet(tuple(pairs[k] for k in keep)))
    assert found is not None
    assert found.concepts == ("c0", "c2")
    assert found.gram.shape == (2, 2)
    one_sided = [k for k, pair in enumerate(pairs) if pair.chosen == " Yes"]
    assert estimate_clusters(points[one_sided], PairSet(tuple(pairs[k] for k in one_sided))) is None


def test_responses_that_do_not_repeat_are_no_clusters() -> None:
    """Chat: the same points, but every pair has responses of its own, so that the alphabet parts them at random."""
    points, pairs = plant(noise=0.1, size=4).draw(0)
    own = [replace(pair, chosen=f"{pair.chosen} {k}", rejected=f"{pair.rejected} {k}") for k, pair in enumerate(pairs)]
    assert estimate_clusters(points, pairs) is not None
    assert estimate_clusters(points, PairSet(tuple(own))) is None


def sharing(*rows: tuple[str, tuple[int, ...], tuple[int, ...]], flipped: frozenset[int] = frozenset()):
    """`rows`: concept, chosen and rejected tokens; the pairs in `flipped` belong to the negative cluster."""
    pairs = PairSet(
        tuple(
            Pair(f"p{k}", row[0], "q", *((" No", " Yes") if k in flipped else (" Yes", " No")), "s", k)
            for k, row in enumerate(rows)
        )
    )
    return token_sharing(pairs, [row[1] for row in rows], [row[2] for row in rows])


def test_distinct_chained_and_common_tokens() -> None:
    distinct = sharing(("a", (1,), (2,)), ("b", (3,), (4,)), ("c", (5,), (6,)))
    assert (distinct.max_token_count, distinct.interacting_concepts) == (1, 0)
    chain = sharing(("a", (1,), (2,)), ("b", (2,), (3,)), ("c", (3,), (4,)))
    assert (chain.max_token_count, chain.interacting_concepts) == (2, 2)
    common = sharing(*((name, (1,), (2,)) for name in "abcde"))
    assert (common.max_token_count, common.interacting_concepts) == (5, 4)


def test_swapped_clusters_count_once_and_give_the_concepts_responses() -> None:
    found = sharing(("a", (1,), (2,)), ("a", (2,), (1,)), ("a", (1,), (2,)), flipped=frozenset({1}))
    assert found.max_token_count == 1
    assert found.interacting_concepts == 0
    assert found.responses == ((1, 2),)


def test_concepts_with_several_response_pairs_or_long_responses_have_no_single_one() -> None:
    assert sharing(("a", (1,), (2,)), ("a", (3,), (2,))).responses is None
    long = sharing(("a", (1, 7), (2,)), ("b", (7,), (3,)))
    assert long.responses is None
    assert (long.max_token_count, long.interacting_concepts) == (2, 1)
