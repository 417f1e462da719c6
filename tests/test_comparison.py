"""Comparison of two runs: identities, alignment of pairs and steps, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from margincast.comparison import agreement, compare, pearson, spearman
from margincast.errors import InputError
from margincast.intervals import bootstrap
from margincast.records import PairSet, SplitTrajectory, Trajectory
from tests.problems import make_pairs

PAIRS = make_pairs(30, concepts=3)
TRAIN, HELDOUT = PairSet(PAIRS.pairs[:12]), PairSet(PAIRS.pairs[12:])


def run(steps: tuple[int, ...] = (0, 5, 10), seed: int = 0, chosen: bool = True) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)

    def split(pairs: PairSet) -> SplitTrajectory:
        margins = torch.randn(len(steps), len(pairs), generator=generator, dtype=torch.float64)
        return SplitTrajectory(pairs, margins, margins / 2 if chosen else None)

    return Trajectory(steps, split(TRAIN), split(HELDOUT), beta=0.1, origin=f"run {seed}")


def test_a_run_agrees_with_itself() -> None:
    result = compare(run(), run())
    for found in (result.heldout, result.trained, *result.concepts.values()):
        assert found is not None
        assert (found.max_abs_difference, found.mean_abs_difference.value) == (0.0, 0.0)
        assert found.spearman.value == pytest.approx(1.0, rel=1e-12)
        assert found.pearson.value == pytest.approx(1.0, rel=1e-12)
        assert found.accuracy_a == found.accuracy_b
        assert found.margin_a == found.margin_b
    assert list(result.concepts) == ["concept-0", "concept-1", "concept-2"]
    assert sum(found.pairs for found in result.concepts.values()) == result.heldout.pairs == 18


def test_swapping_the_runs_swaps_the_sides_and_keeps_the_rest() -> None:
    one, two = (compare(a, b).heldout for a, b in ((run(seed=1), run(seed=2)), (run(seed=2), run(seed=1))))
    assert one.spearman.value == pytest.approx(two.spearman.value, rel=1e-12)
    assert one.max_abs_difference == two.max_abs_difference
    assert (one.accuracy_a, one.margin_a) == (two.accuracy_b, two.margin_b)
    assert one.largest_margin == two.largest_margin


vectors = st.lists(st.tuples(*[st.integers(-5, 5)] * 2), min_size=3, max_size=20)


@given(vectors)
def test_correlations_are_scipys(rows: list[tuple[int, int]]) -> None:
    x, y = np.array(rows, dtype=np.float64).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(pearson(x, y))
        assert math.isnan(spearman(x, y))
        return
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-10, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-10, abs=1e-12)


@given(st.floats(-1e3, 1e3), st.integers(2, 12))
def test_values_that_do_not_vary_have_no_correlation(value: float, count: int) -> None:
    """The mean of equal numbers is rounded: what is left of them after centring must not count as variation."""
    same = np.full(count, value)
    assert math.isnan(pearson(same, np.arange(float(count))))
    assert math.isnan(pearson(same, same))
    assert math.isnan(spearman(same, same))


@pytest.mark.parametrize("scale", [1e-150, 1e-12, 1e12, 1e150])
def test_correlations_do_not_depend_on_the_unit(scale: float) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    assert pearson(scale * x, y / scale) == pytest.approx(pearson(x, y), rel=1e-12)


def test_pairs_are_matched_by_what_they_are_not_by_where_they_stand() -> None:
    a = run()
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))
    shuffled = SplitTrajectory(
        PairSet(tuple(HELDOUT[int(k)] for k in order)), a.heldout.margins[:, order], (a.heldout.margins / 2)[:, order]
    )
    result = compare(a, dataclasses.replace(a, heldout=shuffled))
    assert result.heldout.max_abs_difference == 0.0
    assert result.b.heldout.pairs == HELDOUT
    assert result.b.heldout.chosen is not None
    assert torch.equal(result.b.heldout.chosen, a.heldout.margins / 2)


@pytest.mark.parametrize("field", ["id", "prompt", "chosen", "rejected"])
def test_a_pair_whose_text_or_id_changed_is_another_pair(field: str) -> None:
    a = run()
    pairs = PairSet((dataclasses.replace(HELDOUT[0], **{field: "something else"}), *HELDOUT.pairs[1:]))
    result = compare(a, dataclasses.replace(a, heldout=dataclasses.replace(a.heldout, pairs=pairs)))
    assert result.heldout.pairs == 17
    assert result.a.heldout.pairs == PairSet(HELDOUT.pairs[1:])
    assert result.a.heldout.margins.shape == (3, 17)


def test_only_common_steps_are_compared_and_the_last_of_them_counts() -> None:
    a, b = run((0, 5, 10, 15)), run((0, 10, 20), seed=4)
    result = compare(a, b)
    assert result.a.steps == result.b.steps == (0, 10)
    expected = (a.heldout.margins[2] - b.heldout.margins[1]).abs().max()
    assert result.heldout.max_abs_difference == float(expected)


def test_runs_that_recorded_other_training_pairs_are_compared_on_held_out_ones() -> None:
    a = run()
    other = SplitTrajectory(make_pairs(12, 3, start=100), a.train.margins)
    result = compare(a, dataclasses.replace(a, train=other))
    assert result.trained is None
    assert result.heldout.max_abs_difference == 0.0


def test_chosen_rewards_may_be_known_on_one_side_only() -> None:
    result = compare(run(), run(chosen=False))
    assert result.a.heldout.chosen is not None
    assert result.b.heldout.chosen is None


def test_runs_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(InputError, match=r"share no recorded step after 0 \(steps 0, 5, 10 and 0, 7\)"):
        compare(run(), run((0, 7)))
    elsewhere = dataclasses.replace(run(), heldout=SplitTrajectory(make_pairs(18, 3, 100), run().heldout.margins))
    with pytest.raises(InputError, match="share no held-out pair; compare runs of the same data and the same seed"):
        compare(run(), elsewhere)


def test_a_broken_margin_is_not_hidden_and_breaks_nothing() -> None:
    left, right = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left[3] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(left, right)
    for value in (found.spearman.value, found.pearson.low, found.max_abs_difference, found.mean_abs_difference.high):
        assert math.isnan(value)
    assert found.accuracy_b.value == float((right > 0).double().mean())


def test_numbers_are_written_under_the_contracts_keys() -> None:
    written = compare(run(seed=1), run(seed=2)).heldout.as_dict()
    assert {"spearman", "pearson", "max_abs_difference", "mean_abs_difference"} <= set(written)
    low, high = written["intervals"]["spearman"]
    assert low <= written["spearman"] <= high
    assert set(written["intervals"]) == {"spearman", "pearson", "mean_abs_difference", "accuracy_a", "accuracy_b"}


def test_intervals_of_the_rank_correlation_cover_as_they_say() -> None:
    """50 draws of 60 pairs of known rank correlation. If 95% hold, 39 or fewer of 50 come once in 10,000 suites."""
    generator = np.random.default_rng(0)
    correlation = 0.6
    truth = 6 / math.pi * math.asin(correlation / 2)  # the Spearman correlation of a normal pair
    inside = 0
    for _ in range(50):
        x, y = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=60).T
        found = bootstrap(spearman, x, y)
        inside += found.low <= truth <= found.high
    assert stats.binom.cdf(39, 50, 0.95) < 1e-4
    assert inside > 39
