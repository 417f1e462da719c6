"""Gradient flow: closed form, small steps of gradient descent, restart, scaling and non-expansion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from margincast.errors import InputError
from margincast.frozen.engine.step import simulate
from margincast.frozen.flow.states import gradient_flow
from margincast.recipe.batches import full_batch
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.optimizers.sgd import SGD
from tests.oracles import runge_kutta
from tests.problems import random_space, repeated_margin, repeated_pair
from tests.tolerances import error

SPACE = random_space(pairs=12, hidden=5, tokens=4, beta=0.7, seed=0)


@pytest.mark.parametrize("size, beta, time", [(1.0, 1.0, 3.0), (5.0, 0.1, 40.0), (2.0, 0.01, 1e4), (1.0, 1.0, 1e-6)])
def test_repeated_pairs_follow_the_closed_form(size: float, beta: float, time: float) -> None:
    space = repeated_pair(3, size, beta)
    margins = space.margins(gradient_flow(space, [time]).states[0])
    assert margins.tolist() == pytest.approx([repeated_margin(size, beta, time)] * 3, rel=1e-7)


def test_the_closed_form_itself_is_right_at_small_times() -> None:
    """r ~ k t / 2 with k = 2 (beta size)^2: checks the expected values above against the slope at 0."""
    assert repeated_margin(2.0, 0.5, 1e-5) == pytest.approx(0.5 * 2.0 * 1e-5, rel=1e-4)


def test_nothing_has_moved_at_time_zero() -> None:
    assert gradient_flow(SPACE, [0.0]).states.tolist() == torch.zeros(1, 4, 5).tolist()
    states = gradient_flow(SPACE, [0.0, 1.0]).states
    assert states.shape == (2, 4, 5)
    assert states[0].abs().max() == 0.0
    assert states[1].abs().max() > 0.0


def test_gradient_descent_converges_to_the_flow_at_first_order() -> None:
    """Log error on log step regresses to a line of slope 1: GD is Euler's rule for this flow."""
    time = 4.0
    exact = gradient_flow(SPACE, [time], rtol=1e-11).states[0]
    counts = [32, 64, 128, 256, 512]
    errors = []
    for steps in counts:
        optimizer = GradientDescent(time / steps)
        *_, last = simulate(SPACE, optimizer, full_batch(len(SPACE), steps), unembedding=SPACE.zeros())
        errors.append(float((last - exact).norm()))
    slope = np.polyfit(np.log(time / np.array(counts)), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.03)


def test_a_run_restarted_midway_arrives_at_the_same_place() -> None:
    """The second half by another integrator, from the recorded middle."""
    middle, end = gradient_flow(SPACE, [3.0, 6.0]).states
    assert error(runge_kutta(SPACE, middle, 3.0, steps=60), end) <= 1e-7


def test_recording_more_times_changes_less_than_the_error_that_is_stated() -> None:
    many = gradient_flow(SPACE, np.linspace(0.0, 6.0, 13).tolist())
    for index, time in ((-1, 6.0), (4, 2.0)):
        once = gradient_flow(SPACE, [time])
        gap = float((many.states[index] - once.states[0]).norm())
        assert gap <= float(many.error[index] + once.error[0]) <= 1e-7


def test_tau_is_the_unit_of_time() -> None:
    assert error(gradient_flow(SPACE, [6.0], tau=3.0).states, gradient_flow(SPACE, [2.0]).states) <= 1e-7


def test_two_stages_of_one_trajectory_never_move_apart() -> None:
    """W(t) and W(t + 1) are two trajectories of one flow, so their distance must not grow with t."""
    states = gradient_flow(SPACE, np.linspace(0.0, 30.0, 31).tolist()).states
    gaps = (states[1:] - states[:-1]).flatten(1).norm(dim=1)
    assert bool((gaps[1:] <= gaps[:-1] * (1 + 1e-7)).all())


def test_the_loss_never_rises_along_the_flow() -> None:
    states = gradient_flow(SPACE, np.linspace(0.0, 30.0, 31).tolist()).states
    losses = torch.stack([torch.log1p(torch.exp(-SPACE.margins(state))).mean() for state in states])
    assert bool((losses[1:] < losses[:-1]).all())


def test_features_in_single_precision_are_followed_in_double() -> None:
    single = random_space(12, 5, 4, 0.7, 0, dtype=torch.float32)
    states = gradient_flow(single, [2.0]).states
    assert states.dtype == torch.float64
    assert error(states, gradient_flow(SPACE, [2.0]).states) <= 1e-6


@pytest.mark.parametrize("times", [[], [-1.0, 1.0], [2.0, 1.0], [1.0, 1.0], [float("nan")], [0.0, float("inf")]])
def test_times_that_are_no_times_are_refused(times: list[float]) -> None:
    with pytest.raises(InputError, match="times of the flow"):
        gradient_flow(SPACE, times)


def test_a_loss_without_a_reference_flows_from_the_models_own_margins() -> None:
    """SimPO: the limit of small steps, and nothing like the flow from margins of 0."""
    loss, W0 = get_loss("simpo", without_reference=True), torch.linspace(-1.0, 1.0, 20, dtype=torch.float64).view(4, 5)
    flow = gradient_flow(SPACE, [2.0], loss, start=W0).states[0]
    steps = 20_000
    *_, last = simulate(SPACE, SGD(2.0 / steps), full_batch(len(SPACE), steps), unembedding=W0, loss=loss)
    assert error(last, flow) <= 1e-4
    assert error(gradient_flow(SPACE, [2.0], loss, start=torch.zeros_like(W0)).states[0], flow) > 1e-2
    with pytest.raises(InputError, match="leaves the reference out"):
        gradient_flow(SPACE, [2.0], loss)
