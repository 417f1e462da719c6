"""Contributions sum to the margins of the forecast, and are what autodiff through an unrolled run says they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.attribution.contributions import Attribution, account, attribute
from margincast.frozen.attribution.shares import Coefficients
from margincast.frozen.engine.pairspace import pair_space
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.frozen.forecast import forecast_frozen
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe
from tests.frozen.test_forecast import problem
from tests.oracles import kernel_loop
from tests.problems import random_space
from tests.recipes import head_recipe
from tests.tolerances import TOLERANCE, error

EXACT = TOLERANCE[torch.float64].formula
SCHEDULED = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_grad_norm": 0.2}
RUNS: dict[str, tuple[Optimizer | GradientFlow, dict[str, Any]]] = {
    "flow": (GradientFlow(0.5), {}),
    "flow of a loss that is not convex": (GradientFlow(0.5), {"loss_type": "savage"}),
    "flow without a reference": (GradientFlow(0.5), {"loss_type": "simpo"}),
    "gd": (GradientDescent(0.8), {}),
    "gd of a loss with a kink": (GradientDescent(0.8), {"loss_type": "hinge"}),
    "sgd, scheduled and clipped": (SGD(0.8), SCHEDULED),
    "sgd, accumulated": (SGD(0.8), {"gradient_accumulation_steps": 3}),
    "sgd decay": (SGD(0.8, weight_decay=0.05), {}),
    "momentum": (SGD(0.5, momentum=0.9), SCHEDULED),
    "nesterov decay": (SGD(0.5, momentum=0.7, nesterov=True, weight_decay=0.05), SCHEDULED),
    "sgd without a reference": (SGD(0.8, weight_decay=0.05), {"loss_type": "simpo"}),
    "adam": (AdamW(0.05), {}),
    "adam, scheduled and clipped": (AdamW(0.05, 0.7, 0.95, 1e-4), SCHEDULED),
    "adamw": (AdamW(0.05, weight_decay=0.3), {"gradient_accumulation_steps": 2}),
    "adamw without a reference": (AdamW(0.05, weight_decay=0.3), {"loss_type": "simpo"}),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, EXACT), (torch.float32, 1e-6)], ids=["f64", "f32"])
def test_contributions_sum_to_the_margins_of_the_forecast(name: str, dtype: torch.dtype, tolerance: float) -> None:
    _, features = problem()
    optimizer, more = RUNS[name]
    run = forecast_frozen(
        features, head_recipe(beta=0.5, optimizer=optimizer, steps=11, batch_size=3, eval_steps=4, **more), dtype=dtype
    )
    spaces = token_spaces(features, Recipe(beta=0.5), dtype)
    for at, step in enumerate(run.steps):
        for split, space in zip((run.train, run.heldout), spaces, strict=True):
            found = run.attributed(step)
            sums = found.contributions(space).sum(dim=1) + found.start(space)
            assert error(sums, split.margins[at]) <= tolerance
            assert error(found.margins(space), sums) <= EXACT
    assert run.train.margins[-1].abs().max() > 0.02


def test_one_pairs_contributions_by_index_and_by_id() -> None:
    _, features = problem()
    run = forecast_frozen(features, head_recipe(beta=0.5, optimizer=SGD(0.8), steps=11, batch_size=3, eval_steps=4))
    by_index = run.attribution(pair=2)
    assert error(by_index.values.sum(), run.heldout.margins[-1, 2]) <= EXACT
    assert by_index.start == 0.0 and by_index.margin == float(run.heldout.margins[-1, 2])
    assert torch.equal(run.attribution(pair=run.heldout.pairs[2].id).values, by_index.values)
    assert error(run.attribution(3, split="train", step=4).values.sum(), run.train.margins[1, 3]) <= EXACT
    for wrong, message in [
        ({"pair": 99}, "pair must lie in 0 .. 3"),
        ({"pair": "p0"}, "no heldout pair has the id 'p0'"),
        ({"pair": 0, "split": "test"}, "split must be"),
        ({"pair": 0, "step": 5}, "step 5 was not recorded; use one of 0, 4, 8, 11"),
    ]:
        with pytest.raises(InputError, match=message):
            run.attribution(**wrong)  # type: ignore[arg-type]


def test_a_margin_as_a_sum_knows_its_pairs_and_what_belongs_to_none() -> None:
    """With weight decay the start belongs to no pair; start, contributions and rounding are the margin."""
    _, features = problem()
    recipe = head_recipe(beta=0.5, optimizer=AdamW(0.05, weight_decay=0.1), steps=6, batch_size=3)
    run = forecast_frozen(features, recipe)
    found = run.attribution(pair=1)
    assert abs(found.start) > 1e-6 and abs(found.residual) <= EXACT * abs(found.margin)
    frame = found.to_pandas()
    assert frame.id.tolist() == [pair.id for pair in features.train.pairs]
    assert frame.contribution.tolist() == found.values.tolist()
    largest = frame.loc[frame.contribution.abs().sort_values(ascending=False).index[:3]]
    assert [(each.pair.id, each.value) for each in found.top(3)] == list(
        zip(largest.id, largest.contribution, strict=True)
    )
    assert found.top(1)[0].pair.id in found._repr_html_() and len(repr(found)) < 120
    for count in (0, len(features.train.pairs) + 1):
        with pytest.raises(InputError, match="top takes from 1 to all"):
            found.top(count)


def unrolled(train: TokenSpace, target: TokenSpace, recipe: Recipe, start: Tensor) -> Tensor:
    """d margins / d gates summed over steps, (targets, N), every pair's push in every step being times a gate of 1.

    The optimizers are written out here, on the T x d rows; pushes and Adam's divisor are held as the run had them.
    """
    loss, optimizer = recipe.loss, recipe.rule
    gates = torch.ones(recipe.steps, len(train), dtype=torch.float64, requires_grad=True)
    deltas = torch.zeros(len(train), train.tokens, dtype=torch.float64)
    deltas[torch.arange(len(train)), train.chosen] += 1
    deltas[torch.arange(len(train)), train.rejected] -= 1
    weight, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for k, batch in enumerate(recipe.batches(len(train))):
        state = (weight if loss.reference_free else weight - start).detach()
        weights = torch.zeros(len(train), dtype=torch.float64).index_add_(0, batch.rows, batch.weights)
        push = train.beta * weights * loss.slope(train.beta * ((deltas @ state) * train.features).sum(dim=1))
        size = (deltas.T @ (push[:, None] * train.features)).norm()
        if recipe.max_grad_norm:
            push = push * min(1.0, float(recipe.max_grad_norm / (size + 1e-6)))
        gradient = deltas.T @ ((gates[k] * push)[:, None] * train.features)
        assert not optimizer.flow
        rate = optimizer.learning_rate * recipe.factor(k)
        if isinstance(optimizer, SGD):
            gradient = gradient + optimizer.weight_decay * weight
            first = optimizer.momentum * first + gradient
            weight = weight - rate * (gradient + optimizer.momentum * first if optimizer.nesterov else first)
            continue
        assert isinstance(optimizer, AdamW)
        first = optimizer.beta1 * first + (1 - optimizer.beta1) * gradient
        second = optimizer.beta2 * second + (1 - optimizer.beta2) * gradient.detach() ** 2
        divisor = (second / (1 - optimizer.beta2 ** (k + 1))).sqrt() + optimizer.eps
        weight = weight - rate * optimizer.weight_decay * weight
        weight = weight - rate * first / (1 - optimizer.beta1 ** (k + 1)) / divisor
    state = weight - start
    chosen, rejected = state[target.chosen], state[target.rejected]
    margins = target.beta * ((chosen - rejected) * target.features).sum(dim=1)
    return torch.stack([torch.autograd.grad(margin, gates, retain_graph=True)[0].sum(dim=0) for margin in margins])


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("flow")])
def test_contributions_are_those_of_autodiff_through_an_unrolled_run(name: str) -> None:
    optimizer, more = RUNS[name]
    recipe = head_recipe(beta=0.4, optimizer=optimizer, steps=7, batch_size=4, **more)
    train, target = random_space(11, 5, 4, 0.4, 0), random_space(6, 5, 4, 0.4, 1)
    start = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours = account(train, recipe, start, [7])[7].contributions(target)
    assert error(ours, unrolled(train, target, recipe, start)) <= TOLERANCE[torch.float64].run


def test_coefficients_are_those_of_pair_space() -> None:
    train = random_space(12, 6, 3, 0.4, 3)
    recipe = head_recipe(beta=0.4, optimizer=SGD(0.5, momentum=0.8), steps=9, batch_size=5)
    pairs = pair_space(train)
    start = torch.zeros(3, 6, dtype=torch.float64)
    run = simulate(
        pairs, SGD(0.5, momentum=0.8), recipe.batches(12), unembedding=pairs.zeros(), loss=recipe.loss,
        max_grad_norm=1.0,
    )  # fmt: skip
    shares = account(train, recipe, start, [9])[9].shares
    assert isinstance(shares, Coefficients)
    assert error(shares.values, list(run)[-1]) <= TOLERANCE[torch.float64].run


def test_coefficients_of_the_flow_are_those_of_its_kernel_equation() -> None:
    """tau da/dt = (beta/N) sigma(-beta C a), integrated by another method."""
    train = random_space(9, 5, 3, 0.4, 4)
    kernel = kernel_loop(train, train).numpy()
    right = solve_ivp(
        lambda _, a: 0.4 / 9 / (1 + np.exp(0.4 * kernel @ a)), (0, 6.0), np.zeros(9), rtol=1e-12, atol=1e-14
    ).y[:, -1]
    recipe = head_recipe(beta=0.4, optimizer=GradientFlow(0.5), steps=12, eval_steps=5)
    found = account(train, recipe, torch.zeros(3, 5), [12])[12]
    assert isinstance(found.shares, Coefficients)
    assert error(found.shares.values, torch.from_numpy(right)) <= 1e-8


def some_attribution(pairs: int, tokens: int, seed: int, adam: bool, batch: int) -> tuple[Attribution, TokenSpace]:
    optimizer = AdamW(0.05, weight_decay=0.1) if adam else SGD(0.5, momentum=0.5)
    recipe = head_recipe(beta=0.4, optimizer=optimizer, steps=4, batch_size=batch)
    start = torch.randn(tokens, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    train = random_space(pairs, 3, tokens, 0.4, seed)
    return account(train, recipe, start, [4])[4], random_space(7, 3, tokens, 0.4, seed + 1)


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.integers(1, 30), tokens=st.integers(2, 5), seed=st.integers(0, 99), adam=st.booleans(),
    batch=st.integers(1, 40), block=st.sampled_from([1, 7, 1 << 20]), data=st.data(),
)  # fmt: skip
def test_top_and_groups_are_those_of_all_contributions(
    pairs: int, tokens: int, seed: int, adam: bool, batch: int, block: int, data: st.DataObject
) -> None:
    made, targets = some_attribution(pairs, tokens, seed, adam, batch)
    found = replace(made, targets_at_once=3, block_numbers=6 * block)
    count = data.draw(st.integers(1, pairs))
    top = found.top(targets, count)
    dense = found.contributions(targets)
    rows = torch.randperm(pairs)[: max(1, pairs // 2)]
    assert torch.equal(found.contributions(targets, rows), dense[:, rows])
    groups = torch.arange(pairs) % 3
    by_group = torch.stack([targets.margins(state) for state in found.by_group(groups, 3)], dim=1)
    size = dense.abs().max()
    sizes = dense.abs().sort(dim=1, descending=True).values[:, :count]
    assert (top.values.abs() - sizes).abs().max() <= EXACT * size
    assert (dense.gather(1, top.indices) - top.values).abs().max() <= EXACT * size
    assert all(len(set(row)) == count for row in top.indices.tolist())
    assert (top.positive - dense.clamp(min=0).sum(dim=1)).abs().max() <= EXACT * size * pairs
    assert (top.negative - dense.clamp(max=0).sum(dim=1)).abs().max() <= EXACT * size * pairs
    assert (top.rest + top.values.sum(dim=1) - dense.sum(dim=1)).abs().max() <= EXACT * size * pairs
    for group in range(3):
        assert (by_group[:, group] - dense[:, groups == group].sum(dim=1)).abs().max() <= EXACT * size * pairs


def test_features_in_float32_with_a_large_shared_component_lose_nothing() -> None:
    """Contributions a thousand times the margin: their products are taken in float64."""
    train, target = random_space(300, 64, 2, 0.01, 0), random_space(20, 64, 2, 0.01, 1)
    shared = 30 * torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    stored = [
        TokenSpace((space.features + shared).float(), space.chosen, space.rejected, 0.01, 2)
        for space in (train, target)
    ]
    recipe = head_recipe(optimizer=GradientDescent(1e-2), steps=20)
    found = account(stored[0], recipe, torch.zeros(2, 64), [20])[20]
    wide = TokenSpace(stored[1].features.double(), target.chosen, target.rejected, 0.01, 2)
    margins = found.margins(wide)
    contributions = found.contributions(stored[1])
    assert contributions.abs().sum(dim=1).max() > 50 * margins.abs().max()
    assert error(contributions.sum(dim=1), margins) <= EXACT


def test_attribute_takes_the_settings_of_forecast() -> None:
    _, features = problem()
    options = {"beta": 0.5, "optimizer": AdamW(0.05), "steps": 8, "batch_size": 3}
    run = forecast_frozen(features, head_recipe(eval_steps=4, **options))
    found = attribute(features, head_recipe(**options), at=[4, 8])
    _, heldout = token_spaces(features, Recipe(beta=0.5))
    assert [error(found[step].margins(heldout), run.heldout.margins[k]) <= EXACT for k, step in ((1, 4), (2, 8))]
    assert list(attribute(features, head_recipe(**options))) == [8]
    assert "NOT" not in found[8].exact and "preconditioner" in found[8].exact
    assert "every step" in attribute(features, head_recipe(beta=0.5, optimizer=SGD(0.1)))[60].exact
    with pytest.raises(InputError, match=r"steps must lie in 0 .. 8, got \[9\]"):
        attribute(features, head_recipe(**options), at=[9])
    with pytest.raises(InputError, match="top takes from 1 to all 10 training pairs, got 11"):
        found[8].top(heldout, 11)


def test_an_optimizer_whose_steps_are_not_known_is_refused() -> None:
    class Other(Optimizer):
        def update(self, gradient: Tensor, weights: Tensor, slots: Any, step: int, learning_rate: float) -> Tensor:
            return -learning_rate * gradient.sign()

    _, features = problem()
    with pytest.raises(InputError, match=r"what a training pair adds under Other is not known"):
        attribute(features, head_recipe(optimizer=Other(), steps=3))
