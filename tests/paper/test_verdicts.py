"""Verdicts on curves and matrices whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from margincast.paper.curves import Curves
from margincast.paper.embeddings import Cosines
from margincast.paper.growth import simulated_growth
from margincast.paper.scales import RunSpec
from margincast.paper.verdicts import between, cosine_verdicts, curve_verdicts, theory_verdict
from margincast.theory.distribution import preference_distribution

STEPS = (0, 10, 20)


def grid(power: float, seeds: int = 3, noise: float = 0.01) -> list[Curves]:
    """Runs whose margins grow as step * K^power, seeds apart by a factor."""
    draw = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        for k in (1, 2, 4, 8):
            rate = k**power * (1 + noise * draw.standard_normal()) / 100
            margin = tuple(rate * step for step in STEPS)
            split = {
                "margin": margin,
                "loss": tuple(math.log1p(math.exp(-m)) for m in margin),
                "accuracy": tuple(0.5 + m if m else 0.0 for m in margin),
            }
            found.append(Curves(RunSpec(k, seed, "all", "training"), STEPS, split, split))
    return found


def test_the_exponent_of_the_growth_is_found() -> None:
    rates = {power: curve_verdicts(grid(power))[-1] for power in (-1.0, -0.5)}
    assert rates[-1.0].value == pytest.approx(-1.0, abs=0.02)
    assert rates[-1.0].holds is True
    assert rates[-0.5].value == pytest.approx(-0.5, abs=0.02)
    assert rates[-0.5].holds is False


def test_the_interval_over_seeds_is_students() -> None:
    runs = grid(-1.0)
    each = []
    for seed in range(3):
        mine = [run for run in runs if run.spec.seed == seed]
        growth = [np.mean(run.train["margin"][1:]) for run in mine]
        each.append(stats.linregress(np.log([1, 2, 4, 8]), np.log(growth)).slope)
    expected = stats.t.interval(0.95, 2, loc=np.mean(each), scale=stats.sem(each))
    rate = curve_verdicts(runs)[-1]
    assert (rate.low, rate.high) == pytest.approx(expected, abs=1e-9)


def test_slower_is_held_refuted_or_undecided() -> None:
    slower, faster, even = (curve_verdicts(grid(power, noise=0.05)) for power in (-1.0, 1.0, 0.0))
    for verdicts, expected in ((slower, True), (faster, False)):
        assert [v.holds for v in verdicts[:2]] == [expected, expected]
        assert verdicts[6].holds is expected  # falls from each K to the next
    # Margins at step 20 are K^power / 5: they fall least from 4 to 8, and rise most there.
    assert slower[6].value == pytest.approx((1 / 8 - 1 / 4) / 5, rel=0.2)
    assert faster[6].value == pytest.approx((8 - 4) / 5, rel=0.2)
    assert "from K=4 to K=8" in slower[6].compared
    assert "does not fall from K=1 to K=2, K=2 to K=4, K=4 to K=8" in faster[6].compared
    assert [v.holds for v in even[:2]] == [None, None]


def test_forecasts_are_judged_by_what_they_missed() -> None:
    """Accuracy 0.02 too high at every K, margins a fifth too small, seeds alike to a percent."""
    runs = grid(-1.0)
    forecasts = []
    for run in runs:
        told = {name: list(values) for name, values in run.heldout.items()}
        told["accuracy"][-1] += 0.02 + 1e-4 * run.spec.seed
        told["margin"][-1] *= 0.8 + 1e-4 * run.spec.seed
        made = {name: tuple(values) for name, values in told.items()}
        forecasts.append(Curves(RunSpec(run.spec.K, run.spec.seed, "all", "forecast"), STEPS, run.train, made))
    accuracy, margin = (v for v in curve_verdicts([*runs, *forecasts]) if "is forecast within" in v.claim)
    assert (accuracy.holds, margin.holds) == (True, False)
    assert accuracy.value == pytest.approx(0.0201)
    assert margin.value == pytest.approx(0.1999)


def test_one_seed_decides_nothing_about_slopes() -> None:
    verdicts = curve_verdicts(grid(-1.0, seeds=1))
    assert {v.holds for v in verdicts[:6]} == {None}
    assert all(math.isnan(v.low) and not math.isnan(v.value) for v in verdicts[:6])


def test_one_k_has_no_verdict() -> None:
    assert curve_verdicts([run for run in grid(-1.0) if run.spec.K == 1]) == []


def cosines(raw: torch.Tensor, centred: torch.Tensor) -> Cosines:
    names = tuple(f"persona {number}" for number in range(len(raw)))
    return Cosines("fig1", "statement", "matching", False, names, 500, raw, centred)


def test_the_picture_of_the_paper_holds_and_its_opposite_does_not() -> None:
    eye, ones = torch.eye(6, dtype=torch.float64), torch.ones(6, 6, dtype=torch.float64)
    shared, zero, orthogonal = cosine_verdicts(cosines(0.8 * ones, 0.3 * eye + 0.01 * ones))
    assert (shared.holds, zero.holds, orthogonal.holds) == (True, True, True)
    assert shared.value == pytest.approx(0.8)
    assert orthogonal.value == pytest.approx(0.01 / 0.31)
    shared, zero, orthogonal = cosine_verdicts(cosines(0.1 * ones, 0.1 * eye + 0.4 * ones))
    assert (shared.holds, zero.holds, orthogonal.holds) == (False, False, False)


def test_near_zero_cosines_alone_do_not_make_directions_orthogonal() -> None:
    """Scattered statements have small cosines with everything, their own persona's included."""
    eye, ones = torch.eye(6, dtype=torch.float64), torch.ones(6, 6, dtype=torch.float64)
    _, zero, orthogonal = cosine_verdicts(cosines(0.8 * ones, 0.02 * ones + 0.01 * eye))
    assert zero.holds is True
    assert orthogonal.holds is False


def test_a_persona_without_a_direction_leaves_it_undecided() -> None:
    *_, orthogonal = cosine_verdicts(cosines(torch.ones(3, 3), torch.diag(torch.tensor([0.1, -0.1, 0.1]))))
    assert orthogonal.holds is None


def test_the_mean_between_personas_leaves_the_diagonal_out() -> None:
    matrix = torch.tensor([[9.0, 1.0, 2.0], [1.0, 9.0, 3.0], [2.0, 3.0, 9.0]])
    assert between(matrix).value == 2.0
    assert 1.0 <= between(matrix).low <= between(matrix).high <= 3.0


def test_the_theory_grows_as_one_over_k() -> None:
    rates = {
        k: [simulated_growth(preference_distribution(k, 20, 60, 0.4, 0.05), 0.01, seed) for seed in range(2)]
        for k in (1, 2, 4)
    }
    verdict = theory_verdict(rates, "")
    assert verdict.value == pytest.approx(-1.0, abs=0.05)
    # r = Q beta^2 t (1 - l_b^2 + ...) / (N tau) at the start: of order 1/(2K).
    assert all(0.3 < rate * k < 1.5 for k, values in rates.items() for rate in values)


def test_records_come_back_as_they_were() -> None:
    run = grid(-1.0)[0]
    assert Curves.from_row(run.row()) == run
    one = cosines(torch.tensor([[1.0, float("nan")], [float("nan"), 0.12341]]), torch.eye(2))
    again = Cosines.from_row(one.row())
    torch.testing.assert_close(again.raw, one.raw.double(), atol=5e-5, rtol=0, equal_nan=True)
    assert again.concepts == one.concepts
    assert again.name == "fig1-statement-matching"
