"""Losses of log-ratios divided by the length of their response, with and without a reference, on many tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from margincast.features.positions import Positions, TokenFeatures
from margincast.frozen.attribution.edits import Edit
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.tokens.displacement import displacements
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.frozen.tokens.pushes import decompose
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe
from tests.frozen.tokens.test_attribution import BETA, HELDOUT, PAIRS, positions
from tests.frozen.tokens.test_decomposition import logps
from tests.recipes import head_recipe
from tests.tolerances import error

LOSSES = ("ipo", "sigmoid_norm", "simpo")
SETTINGS: dict[str, Any] = {"beta": BETA, "steps": 6, "batch_size": 3, "eval_steps": 4}


def margins(features: TokenFeatures, weight: Tensor, start: Tensor | None) -> Tensor:
    """As TRL's DPOTrainer and CPOTrainer average: over the tokens of each response. start: W0 of the reference"""
    ratios = logps(features, weight) - (0.0 if start is None else logps(features, start))
    means = [ratios[features.response == k].mean() for k in range(2 * features.pairs)]
    return BETA * (torch.stack(means[::2]) - torch.stack(means[1::2]))


def loss_of(name: str, r: Tensor) -> Tensor:
    """Written out from the papers."""
    if name == "ipo":
        return (r / BETA - 1 / (2 * BETA)) ** 2
    return -torch.nn.functional.logsigmoid(r - (0.5 if name == "simpo" else 0.0))


def trained(split: Positions, recipe: Recipe, optimizer: Any) -> tuple[Tensor, Tensor]:
    """Margins of both splits after a head was trained by PyTorch."""
    name, start = recipe.loss.name, split.unembedding
    reference = None if name == "simpo" else start
    weight = start.clone().requires_grad_(True)
    steps = optimizer([weight])
    for batch in recipe.batches(PAIRS):
        steps.zero_grad()
        found = margins(split.train, weight, reference)[batch.rows]
        (batch.weights * loss_of(name, found)).sum().backward()
        if recipe.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([weight], recipe.max_grad_norm)
        steps.step()
    with torch.no_grad():
        return margins(split.train, weight, reference), margins(split.heldout, weight, reference)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (AdamW(0.02, weight_decay=0.1), lambda weights: torch.optim.AdamW(weights, lr=0.02, weight_decay=0.1)),
        (SGD(0.1, momentum=0.5), lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.5)),
    ],
    ids=["adamw", "sgd"],
)
def test_the_forecast_is_what_a_trained_head_gives_and_its_parts_add_up(name: str, ours: Any, theirs: Any) -> None:
    recipe = head_recipe(optimizer=ours, loss_type=name, max_grad_norm=0.3, **SETTINGS)
    run = forecast_positions(positions(), recipe, dtype=torch.float64)
    for split, expected in zip((run.train, run.heldout), trained(positions(), recipe, theirs), strict=True):
        assert error(split.margins[-1], expected) <= 1e-10
    targets = [run.target(k) for k in range(HELDOUT)] + [run.target(2, split="train"), run.target()]
    for found in run.attributions(targets):
        assert abs(found.residual) <= 1e-9 * max(abs(found.margin), 1e-3)
    assert error(run.reward_profile().heldout.margins, run.heldout.margins[-1]) <= 1e-12
    first = run.heldout.margins[0]
    assert bool((first != 0).all()) == (name == "simpo")


@pytest.mark.parametrize("name", LOSSES)
def test_flow_adds_up_too_and_is_the_limit_of_small_steps(name: str) -> None:
    flow, small = (
        head_recipe(optimizer=rule, loss_type=name, **(SETTINGS | {"steps": steps, "eval_steps": steps}))
        for rule, steps in ((GradientFlow(0.05), 6), (SGD(0.0005), 600))
    )
    small = replace(small, per_device_train_batch_size=PAIRS, max_grad_norm=0.0)
    run = forecast_positions(positions(), flow)
    assert error(run.heldout.margins[-1], forecast_positions(positions(), small).heldout.margins[-1]) <= 1e-2
    found = run.attribution(1)
    assert abs(found.residual) <= 1e-9 * abs(found.margin)


@pytest.mark.parametrize(
    "name, rule", [*((name, SGD(0.1, momentum=0.5)) for name in LOSSES), ("simpo", GradientFlow(0.05))]
)
def test_derivatives_are_those_of_finite_differences(name: str, rule: Any) -> None:
    recipe = head_recipe(optimizer=rule, loss_type=name, **SETTINGS)
    found, step = sensitivity(positions(), recipe, lambda r: r.mean()[None]), 1e-4

    def mean(weight: float) -> Tensor:
        weights = torch.ones(PAIRS, dtype=torch.float64)
        weights[2] = weight
        return reweighed(positions(), Edit(weights, torch.zeros(PAIRS, dtype=torch.bool)), recipe).mean()

    run = forecast_positions(positions(), recipe, dtype=torch.float64)
    assert error(found.values[0], run.heldout.margins[-1].mean()) <= 1e-12
    numeric = (mean(1 + step) - mean(1 - step)) / (2 * step)
    assert abs(float(numeric - found.weights[0, 2])) <= 1e-6 * float(found.weights.abs().max())


@pytest.mark.parametrize("name", LOSSES)
def test_rates_are_those_of_the_first_small_step(name: str) -> None:
    """`decompose` and the rates of log-likelihoods, against a step of gradient descent."""
    split, rate = positions(), 1e-6
    recipe = head_recipe(optimizer=SGD(rate), loss_type=name, **(SETTINGS | {"steps": 1, "batch_size": PAIRS}))
    run = forecast_positions(split, replace(recipe, max_grad_norm=0.0), dtype=torch.float64)
    pair = split.heldout_pairs[1].id
    found = decompose(split, pair, recipe)
    change = (run.heldout.margins[-1] - run.heldout.margins[0])[1] / rate
    assert found.rates.margin == pytest.approx(float(change), rel=1e-4)
    assert sum(each.margin for each in found.training_pairs) == pytest.approx(found.rates.margin, rel=1e-9)
    by_token = [sum(each.total for each in found.tokens[side]) for side in ("chosen", "rejected")]
    assert by_token[0] - by_token[1] == pytest.approx(found.rates.margin, rel=1e-9)
    rates = displacements(split, recipe).heldout.rates * BETA
    assert float(rates[1, 0] - rates[1, 1]) == pytest.approx(found.rates.margin, rel=1e-6)
