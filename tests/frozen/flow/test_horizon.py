"""Is the long flow the flow, within the error it states, and does it take fewer passes where the problem is stiff?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from margincast.errors import InputError
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.states import gradient_flow
from margincast.recipe.batches import full_batch
from margincast.recipe.losses import get_loss
from tests.oracles import explicit_flow
from tests.problems import random_space, repeated_margin, repeated_pair
from tests.recipes import sigmoid

TIMES = [1.0, 10.0, 100.0]


def stiff_space(dtype: torch.dtype = torch.float64) -> TokenSpace:
    """Two concepts beside a shared component thirty times their size: eigenvalues a thousand times the median."""
    space = random_space(200, 40, 2, 0.3, 0)
    label = torch.arange(200) % 2
    features = 0.3 * space.features
    features[:, 0] += 30.0
    features[:, 1] += 2.0 * label - 1.0
    return TokenSpace(features.to(dtype), label, 1 - label, 0.3, 2)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_stays_within_the_error_it_states(tolerance: float, rank: int) -> None:
    space = random_space(40, 12, 4, 0.5, 1)
    exact = explicit_flow(space, TIMES, rtol=1e-12)
    flow = gradient_flow(space, TIMES, rtol=tolerance, rank=rank)
    wrong = torch.linalg.vector_norm(flow.states - exact, dim=(1, 2))
    assert (wrong <= flow.error).all()
    assert (flow.error <= 300 * tolerance * torch.linalg.vector_norm(exact, dim=(1, 2))).all()
    margins = torch.stack([space.margins(state) for state in flow.states - exact])
    assert (margins.abs() <= flow.margin_error(space)).all()


def test_the_closed_form_of_repeated_pairs() -> None:
    space = repeated_pair(5, 2.0, 0.5)
    flow = gradient_flow(space, [3.0, 300.0], rtol=1e-10)
    for time, state in zip(flow.times, flow.states, strict=True):
        assert space.margins(state).tolist() == pytest.approx([repeated_margin(2.0, 0.5, time)] * 5, rel=1e-8)


def test_tau_scales_time() -> None:
    space = stiff_space()
    once, slow = gradient_flow(space, [2.0], rtol=1e-9), gradient_flow(space, [6.0], tau=3.0, rtol=1e-9)
    assert float((once.states - slow.states).norm()) <= float(once.error[0] + slow.error[0])


def test_ten_times_fewer_passes_than_rk45_on_a_stiff_problem() -> None:
    space, end = stiff_space(), 300.0
    exact = gradient_flow(space, [end], rtol=1e-9, rank=40).states[0]
    batch, calls = next(full_batch(200, 1)), 0

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return -space.gradient(torch.from_numpy(flat).view(2, 40), sigmoid, batch).flatten().numpy()

    peer = solve_ivp(velocity, (0.0, end), np.zeros(80), method="RK45", rtol=1e-4, atol=1e-8)
    wrong = float((torch.from_numpy(peer.y[:, -1]).view(2, 40) - exact).norm())
    flow = gradient_flow(space, [end], rtol=1e-8)
    assert float((flow.states[0] - exact).norm()) <= wrong
    assert 10 * flow.passes <= calls


def test_features_in_sixteen_bits_give_their_own_flow() -> None:
    narrow = stiff_space(torch.bfloat16)
    wide = TokenSpace(narrow.features.double(), narrow.chosen, narrow.rejected, narrow.beta, 2)
    got, expected = (gradient_flow(space, [5.0], rtol=1e-6) for space in (narrow, wide))
    assert float((got.states - expected.states).norm()) <= float(got.error[0])


def test_what_cannot_be_integrated_is_said() -> None:
    space = random_space(6, 5, 3, 1.0, 1)
    for times in ([], [-1.0, 1.0], [2.0, 1.0], [float("inf")]):
        with pytest.raises(InputError, match="ascending and not negative"):
            gradient_flow(space, times)


def test_a_last_time_far_beyond_the_first_is_reached() -> None:
    """Steps are small beside the first times, not beside the last: that is no failure."""
    space = stiff_space()
    flow = gradient_flow(space, [0.01, 1e12], rtol=1e-4)
    alone = gradient_flow(space, [0.01], rtol=1e-4)
    assert torch.equal(flow.states[0], alone.states[0])
    assert bool((space.margins(flow.states[1]) > 10.0).all())


def test_a_loss_that_is_not_convex_is_followed_too() -> None:
    space, loss = random_space(40, 12, 4, 0.5, 1), get_loss("savage")
    exact = explicit_flow(space, TIMES, loss, rtol=1e-12)
    assert float((gradient_flow(space, TIMES, loss).states - exact).norm()) <= 1e-6 * float(exact.norm())
