"""Certificates: never false, tight on the reference problem, useful on features with a strong shared component."""

from __future__ import annotations

import math

import pytest
import torch
from draws import check, inside_conditions, outside_conditions
from hypothesis import given, settings
from hypothesis import strategies as st
from lookalike import embedding_lookalike

from margincast.errors import InputError
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.states import gradient_flow
from margincast.theory.certificates import certify
from margincast.theory.distribution import preference_distribution
from margincast.theory.envelopes import Bracket, first_order, propagate
from margincast.theory.guarantee import tau_1
from margincast.theory.lemmas import measure_deviations
from margincast.theory.theorems import theorem_epsilon
from margincast.theory.tube import flow_tube


@pytest.mark.parametrize("block", range(10))
def test_no_promise_is_broken_on_two_thousand_random_draws(block: int) -> None:
    """1,000 draws within the conditions and 1,000 outside them, the latter followed to 5 tau_1."""
    for seed in range(100 * block, 100 * (block + 1)):
        assert check(inside_conditions(seed), inside=True).broken == ()
        assert check(outside_conditions(seed), inside=False, horizon=5.0).broken == ()


def test_the_draws_within_the_conditions_meet_them_and_often_lie_in_the_lemmas_event() -> None:
    held = 0
    for seed in range(100):
        it = inside_conditions(seed).distribution
        assert it.Z * 4.0 * it.shared_norm**2 <= 1.0 + 1e-12
        assert it.d <= 5 * it.Q and it.noise <= 0.25 / math.sqrt(it.Q) and it.assumptions()[0].holds
        lines = measure_deviations(it, it.training_set(1.0, seed), theorem_epsilon(it))
        held += all(line.holds for line in lines)
    assert 20 <= held <= 80


def test_the_reference_problem_is_certified_to_within_a_few_percent() -> None:
    """K=4, Q=100, d=500, v=1/40, l_b=0.4: the theorem reaches 14% of the smallest margin, first-order slopes 53%."""
    it = preference_distribution(4, 100, 500, 0.4, 0.025)
    training, fresh = it.training_set(1.0, 0).space, it.fresh_points(100, 1.0, 1).space
    end = tau_1(it, 1.0)
    times = [end * k / 20 for k in range(21)]
    smallest = float(training.margins(gradient_flow(training, [end]).states[0]).min())
    envelope = propagate(training, fresh, times)
    assert math.log(3.0) / 40.0 < 0.2 * smallest
    slopes = first_order(training, fresh)
    assert slopes.horizon >= end
    assert 0.5 < float(slopes.lower.min()) * end / smallest < 0.6
    assert 0.95 < float(envelope.train.lower[-1].min()) / smallest <= 1.0
    assert 0.98 < float(flow_tube(training, times).bracket(training).lower[-1].min()) / smallest <= 1.0


@pytest.mark.parametrize("time", [0.1, 100.0, 3000.0])
def test_features_with_a_strong_shared_component_are_certified(time: float) -> None:
    train, heldout = embedding_lookalike(1200, seed=0), embedding_lookalike(200, seed=1)
    unit = train.features / train.features.norm(dim=1, keepdim=True)
    assert float(unit.mean(0).square().sum()) == pytest.approx(0.988, abs=2e-3)
    times = [0.0, time / 2.0, time]
    states = gradient_flow(train, times).states
    certificate = certify(train, heldout, times)
    for space, bracket in ((train, certificate.train), (heldout, certificate.heldout)):
        margins = torch.stack([space.margins(state) for state in states])
        assert bool((bracket.lower <= margins).all() and (margins <= bracket.upper).all())
        learned = int((margins[-1] > 0.0).sum())
        assert int(bracket.certified_learned()[-1]) >= 0.9 * learned
    # Splitting C by sign certifies nothing here: some slope may be negative from the start.
    assert first_order(train, heldout).horizon == 0.0


def test_the_tube_narrows_with_the_square_of_the_share_and_takes_few_steps() -> None:
    train = embedding_lookalike(400, d=64)
    wide, narrow = (flow_tube(train, [300.0], share=share) for share in (0.2, 0.002))
    assert narrow.radius < 0.05 * wide.radius
    assert wide.steps < narrow.steps < 30 * wide.steps
    state = gradient_flow(train, [300.0], rtol=1e-10).states[0]
    for tube in (wide, narrow):
        assert float((tube.states[0] - state).norm()) <= float(tube.radius[0])


@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 10.0))
@settings(max_examples=40, deadline=None)
def test_the_tube_is_true_whatever_its_accuracy(seed: int, share: float) -> None:
    problem = outside_conditions(seed)
    space = problem.distribution.training_set(problem.beta, seed).space
    times = [problem.tau / problem.beta**2 * factor for factor in (0.1, 1.0)]
    states = gradient_flow(space, times, tau=problem.tau, rtol=1e-9).states
    tube = flow_tube(space, times, problem.tau, share)
    distance = (tube.states - states).flatten(1).norm(dim=1)
    assert bool((distance <= tube.radius + 1e-7 * states.flatten(1).norm(dim=1)).all())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_more_times_never_loosen_a_propagated_envelope(seed: int) -> None:
    problem = inside_conditions(seed)
    space = problem.distribution.training_set(problem.beta, seed).space
    end = tau_1(problem.distribution, problem.beta, problem.tau)
    coarse = propagate(space, space, [end * k / 4 for k in range(5)], problem.tau, shrinkage=1e-9).train
    fine = propagate(space, space, [end * k / 16 for k in range(17)], problem.tau, shrinkage=1e-9).train
    assert bool((fine.lower[::4] >= coarse.lower - 1e-9).all() and (fine.upper[::4] <= coarse.upper + 1e-9).all())


def test_one_pair_alone_has_a_known_course() -> None:
    """N = 1: tau dr/dt = 2 beta^2 |g|^2 sigma(-r) has r + e^r = 1 + 2 beta^2 |g|^2 t/tau."""
    space = TokenSpace(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), torch.tensor([1]), 0.2, 2)
    times = [0.0, 0.5, 1.0, 2.0]
    certificate = certify(space, space, times, tau=0.5, share=1e-3)
    for bracket in (certificate.train, certificate.heldout):
        for time, low, high in zip(times, bracket.lower[:, 0].tolist(), bracket.upper[:, 0].tolist(), strict=True):
            right = 1.0 + 2.0 * 0.2**2 * 25.0 * time / 0.5
            assert low + math.exp(low) <= right + 1e-12 <= high + math.exp(high) + 2e-12
            assert high - low < 0.01


def test_certified_pairs_are_counted_and_intersections_are_tighter() -> None:
    times = torch.tensor([0.0, 1.0])
    one = Bracket(times, torch.tensor([[0.0, 0.0], [0.1, -0.1]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    two = Bracket(times, torch.tensor([[0.0, 0.0], [-0.1, 0.2]]), torch.tensor([[0.0, 0.0], [0.5, 2.0]]))
    both = one.intersect(two)
    assert one.certified_learned().tolist() == [0, 1]
    assert both.certified_learned().tolist() == [0, 2]
    assert both.upper.tolist() == [[0.0, 0.0], [0.5, 1.0]]


def test_features_that_cannot_be_learned_are_certified_at_rest() -> None:
    """Zero features, and the same features under both labels: no margin ever moves, and nothing takes long."""
    zero = TokenSpace(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]), 1.0, 2)
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    label = torch.arange(2).repeat_interleave(6)
    torn = TokenSpace(rows, label, 1 - label, 1.0, 2)
    for space in (zero, torn):
        tube = flow_tube(space, [10.0, 1e6])
        assert tube.steps < 50
        bracket = tube.bracket(space)
        assert bool((bracket.lower <= 0.0).all() and (bracket.upper >= 0.0).all())
        assert float(bracket.upper.max()) < 1e-3
        assert propagate(space, space, [0.0, 1.0, 2.0]).rounds <= 60


def test_a_tube_follows_a_run_to_its_rest() -> None:
    """Labels that cannot be separated: the flow converges, and steps grow long instead of dying out."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(2, (60,), generator=generator)
    space = TokenSpace(torch.randn(60, 5, generator=generator, dtype=torch.float64), label, 1 - label, 1.0, 2)
    times = [1.0, 100.0, 1e4, 1e6]
    tube = flow_tube(space, times)
    states = gradient_flow(space, times[:3]).states
    assert tube.steps < 2000
    distance = (tube.states[:3] - states).flatten(1).norm(dim=1)
    assert bool((distance <= tube.radius[:3] + 1e-6).all())


def test_bad_times_and_shares_are_refused() -> None:
    space = embedding_lookalike(4, d=12)
    with pytest.raises(InputError, match="ascend"):
        propagate(space, space, [0.5, 1.0])
    with pytest.raises(InputError, match="ascend"):
        flow_tube(space, [1.0, 0.5])
    with pytest.raises(InputError, match="share"):
        flow_tube(space, [1.0], share=0.0)
