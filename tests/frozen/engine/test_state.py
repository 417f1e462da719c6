"""Margins, pulls and kernels on token space: against plain loops and against autodiff."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from margincast.frozen.engine.state import TokenSpace
from tests.oracles import flow_velocity, kernel_loop, margins_loop, pull_loop
from tests.problems import random_space
from tests.recipes import sigmoid
from tests.tolerances import TOLERANCE, error

FORMULA = TOLERANCE[torch.float64].formula

spaces = st.builds(
    random_space,
    pairs=st.integers(1, 7),
    hidden=st.integers(1, 5),
    tokens=st.integers(2, 6),
    beta=st.floats(1e-3, 10.0),
    seed=st.integers(0, 10**6),
)


def random_state(space: TokenSpace, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(space.tokens, space.features.shape[1], generator=generator, dtype=torch.float64)


@given(spaces)
def test_margins_are_the_sums_of_their_definition(space: TokenSpace) -> None:
    state = random_state(space)
    assert error(space.margins(state), torch.tensor(margins_loop(space, state), dtype=torch.float64)) <= FORMULA


@given(spaces)
def test_pull_is_the_sum_of_its_definition(space: TokenSpace) -> None:
    coefficients = torch.linspace(-1.0, 2.0, len(space), dtype=torch.float64)
    assert error(space.pull(coefficients), pull_loop(space, coefficients.tolist())) <= FORMULA


@given(spaces, st.integers(0, 100))
def test_kernel_is_token_sharing_times_embedding_correlation(space: TokenSpace, seed: int) -> None:
    other = random_space(4, space.features.shape[1], space.tokens, space.beta, seed)
    assert error(space.kernel(other), kernel_loop(space, other)) <= FORMULA


@given(spaces)
def test_pull_is_the_gradient_of_the_mean_loss(space: TokenSpace) -> None:
    """Eq. 6: the gradient of (1/N) sum f(r_i) in dW, by autodiff."""
    state = random_state(space).requires_grad_()
    (expected,) = torch.autograd.grad(torch.log1p(torch.exp(-space.margins(state))).mean(), state)
    with torch.no_grad():
        ours = space.beta / len(space) * space.pull(sigmoid.slope(space.margins(state)))
    assert error(ours, expected) <= FORMULA


@given(spaces, st.integers(0, 100))
def test_margins_of_new_pairs_move_as_the_kernel_says(space: TokenSpace, seed: int) -> None:
    """Eq. 8-10: the velocity of W seen through the margins is the kernel form, for training and new pairs."""
    state = random_state(space)
    velocity = flow_velocity(space, state)
    for probe in (space, random_space(3, space.features.shape[1], space.tokens, space.beta, seed)):
        weights = -sigmoid.slope(space.margins(state))
        kernel_form = space.beta**2 / len(space) * (kernel_loop(probe, space) @ weights)
        scale = max(float(kernel_form.abs().max()), 1e-3 * space.beta**2)
        assert float((probe.margins(velocity) - kernel_form).abs().max()) <= FORMULA * 10 * scale


@given(spaces, st.integers(0, 100))
@settings(max_examples=50)
def test_the_flow_is_monotone_so_that_trajectories_never_move_apart(space: TokenSpace, seed: int) -> None:
    one, two = random_state(space, seed), random_state(space, seed + 1)
    approach = ((flow_velocity(space, one) - flow_velocity(space, two)) * (one - two)).sum()
    assert float(approach) <= 0.0


def test_rows_keep_the_pairs_asked_for_in_their_order() -> None:
    space = random_space(5, 3, 4, 0.5, 0)
    state = random_state(space)
    index = torch.tensor([3, 0, 3])
    assert torch.equal(space.rows(index).margins(state), space.margins(state)[index])
    assert space.zeros().shape == state.shape
    assert space.margins(space.zeros()).tolist() == [0.0] * 5


def test_a_response_is_not_its_own_rival() -> None:
    """With chosen and rejected swapped the margin changes sign: nothing but the difference counts."""
    space = random_space(6, 4, 3, 0.2, 3)
    swapped = TokenSpace(space.features, space.rejected, space.chosen, space.beta, space.tokens)
    state = random_state(space)
    assert swapped.margins(state).tolist() == pytest.approx((-space.margins(state)).tolist(), rel=1e-12)
