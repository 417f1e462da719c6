"""Does one pass give the gradient that two matrix products give, for every storage, loss and number of threads?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from margincast.errors import InputError
from margincast.frozen.engine import fused, products
from margincast.frozen.engine.fused import fused_gradient, fused_pull, plan_visits
from margincast.frozen.engine.products import FLUSH
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import Batch, full_batch
from margincast.recipe.losses import LOSSES, custom_loss, get_loss
from margincast.recipe.optimizers.adamw import AdamW
from tests.oracles import margins_loop, pull_loop
from tests.problems import random_space
from tests.recipes import sigmoid
from tests.tolerances import TOLERANCE, error


@pytest.fixture(scope="module", params=["compiled", "products"], autouse=True)
def visited_by(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of this file once with numba's loops and once with what stands in for them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "products":
            patch.setattr(fused, "visit", products.visit)
        else:
            pytest.importorskip("numba", reason="the extra `fast` is not installed: pip install -e '.[fast]'")
        yield


def plain(space: TokenSpace, state: torch.Tensor, loss: object, batch: Batch) -> torch.Tensor:
    """The gradient as two products over a copy of the batch's rows."""
    rows = space.rows(batch.rows)
    return space.beta * rows.pull(batch.weights.to(state) * loss.slope(rows.margins(state)))  # type: ignore[attr-defined]


def drawn(space: TokenSpace, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(space.zeros().shape, generator=generator, dtype=torch.float64).to(space.dtype)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_equals_two_products_for_any_batch(pairs: int, hidden: int, tokens: int, seed: int) -> None:
    space = random_space(pairs, hidden, tokens, 0.3, seed)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(pairs, (2 * pairs,), generator=generator)  # with repetitions
    batch = Batch(rows, torch.rand(len(rows), generator=generator, dtype=torch.float64))
    state = drawn(space, seed)
    assert error(space.gradient(state, sigmoid, batch), plain(space, state, sigmoid, batch)) <= 1e-12


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "exp"])
def test_every_loss_on_several_threads(loss: str) -> None:
    member = custom_loss("mine", lambda r: torch.exp(-r / 4)) if loss == "exp" else get_loss(loss, 0.3)
    space = random_space(3000, 200, 3, 0.3, 1)  # enough bytes for several threads
    batch, state = next(full_batch(3000, 1)), drawn(space) / 5
    exact = plain(space, state, member, batch)
    assert error(space.gradient(state, member, batch), exact) <= TOLERANCE[torch.float64].formula
    single = dataclasses.replace(space, features=space.features.float())
    wide = dataclasses.replace(space, features=single.features.double())
    exact = plain(wide, state.float().double(), member, batch)
    wrong = error(plain(single, state.float(), member, batch), exact)
    assert error(single.gradient(state.float(), member, batch), exact) <= max(2 * wrong, 1e-6)


PARAMETERS = {"exo_pair": {"label_smoothing": 0.1}, "cdpo": {"label_smoothing": 0.2}, "simpo": {"simpo_gamma": 0.3}}


@pytest.mark.parametrize("name", [name for name in LOSSES.built_in if name != "discopop"])  # which is of no such form
def test_the_compiled_slope_is_the_loss_own(name: str) -> None:
    space = random_space(500, 20, 3, 1.0, 2)
    loss = get_loss(name, 0.3, without_reference=True, **PARAMETERS.get(name, {}))
    same = dataclasses.replace(loss, closed=None)
    assert loss.closed is not None
    batch = next(full_batch(500, 1))
    for size in (0.01, 1.0, 100.0):  # to margins where exp overflows
        state = size * drawn(space)
        if name == "exponential" and size == 100.0:  # overflows itself
            continue
        assert error(space.gradient(state, loss, batch), space.gradient(state, same, batch)) <= 1e-12


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_widened_exactly(stored: torch.dtype) -> None:
    wide = random_space(300, 50, 3, 0.3, 3, torch.float32)
    tiny = torch.cat([wide.features[:-2], torch.full((1, 50), 3e-6), torch.zeros(1, 50)])  # subnormal in float16
    narrow = dataclasses.replace(wide, features=tiny.to(stored))
    same = dataclasses.replace(wide, features=narrow.features.float())
    batch, state = next(full_batch(300, 1)), drawn(wide)
    assert error(narrow.gradient(state, sigmoid, batch), same.gradient(state, sigmoid, batch)) <= 1e-6
    assert torch.equal(narrow.margins(state), same.margins(state))
    assert narrow.zeros().dtype == torch.float32


def test_the_number_of_threads_changes_rounding_only() -> None:
    space = random_space(4000, 150, 2, 0.3, 4)
    batch, state, threads = next(full_batch(4000, 1)), drawn(space), torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(space.gradient(state, sigmoid, batch))
    finally:
        torch.set_num_threads(threads)
    assert all(error(result, results[0]) <= 1e-12 for result in results)


def test_a_pair_with_one_token_twice_pulls_nothing() -> None:
    space = random_space(6, 5, 3, 0.3, 5)
    with_dud = dataclasses.replace(space, rejected=torch.cat([space.rejected[:5], space.chosen[5:]]))
    weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    without = Batch(torch.arange(5), weights[:5])
    state = drawn(space)
    got = with_dud.gradient(state, sigmoid, Batch(torch.arange(6), weights))
    assert error(got, space.gradient(state, sigmoid, without)) <= 1e-14


def test_long_sums_in_float32_stay_accurate() -> None:
    """Of 200,000 equal terms no more than `FLUSH` are summed in float32, each sum rounding by half an eps at most."""
    space = TokenSpace(torch.full((200_000, 2), 0.125), torch.zeros(200_000).long(), torch.ones(200_000).long(), 1.0, 2)
    batch = Batch(torch.arange(200_000), torch.full((200_000,), 0.1, dtype=torch.float64))
    gradient = space.gradient(space.zeros(), sigmoid, batch)
    # Two more roundings for the weight and the slope.
    assert float(gradient[1, 0]) == pytest.approx(1250.0, rel=(FLUSH + 2) * torch.finfo(torch.float32).eps / 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_features_are_named(bad: float) -> None:
    space = random_space(6, 5, 3, 0.3, 6)
    space.features[3, 2] = bad
    with pytest.raises(InputError, match="pair 3 are not finite"):
        next(simulate(space, AdamW(), full_batch(6, 1), unembedding=space.zeros()))


def test_no_pairs_is_said() -> None:
    space = random_space(6, 5, 3, 0.3, 6).rows(torch.arange(0))
    with pytest.raises(InputError, match="no pair to train on"):
        space.check()
    with pytest.raises(InputError, match="no training pair"):
        next(simulate(space, AdamW(), full_batch(0, 1), unembedding=space.zeros()))


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_pass_says_which_margins_it_met(loss: str) -> None:
    """In the order of the batch, also where rows are visited in another."""
    space = random_space(40, 5, 4, 0.3, seed=1)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:23]
    state, met = drawn(space), torch.empty(23, dtype=torch.float64)
    visits, weights = plan_visits(rows, space.chosen, space.rejected), torch.ones(23, dtype=torch.float64)
    fused_gradient(space.features, visits, state, 0.3, weights, get_loss(loss, 0.3), met)
    expected = torch.tensor(margins_loop(space.rows(rows), state), dtype=torch.float64)
    assert error(met, expected) <= TOLERANCE[torch.float64].formula


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_pull_alone_is_the_plain_sum(dtype: torch.dtype) -> None:
    space = random_space(40, 5, 4, 0.3, seed=2, dtype=dtype)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:23]
    coefficients = torch.randn(23, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    ours = fused_pull(space.features, plan_visits(rows, space.chosen, space.rejected), coefficients, space.tokens)
    assert ours.dtype == dtype
    assert error(ours, pull_loop(space.rows(rows), coefficients.tolist())) <= TOLERANCE[dtype].formula
