"""One optimizer step equals PyTorch's, and the command line's names give the right rules."""

from __future__ import annotations

import pytest
import torch

from margincast.errors import InputError
from margincast.recipe.optimizer import Optimizer, Slots
from margincast.recipe.optimizers.adam import Adam
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe
from tests.tolerances import TOLERANCE, error


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (AdamW(0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
        (AdamW(0.1, weight_decay=0.3), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3)),
        (AdamW(0.1, 0.5, 0.8, 1e-3, 0.1), lambda p: torch.optim.AdamW(p, 0.1, (0.5, 0.8), 1e-3, 0.1)),
    ],
    ids=["sgd", "adam", "adamw", "adamw with other settings"],
)
def test_steps_equal_pytorchs_on_arbitrary_gradients(ours, theirs, dtype) -> None:
    """Gradients over nine orders of magnitude, so that eps matters in some entries and not in others."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator, dtype=torch.float64).to(dtype)
    parameter = weight.clone().requires_grad_()
    optimizer = theirs([parameter])
    slots: Slots = {}
    for step in range(1, 12):
        gradient = torch.randn(6, 5, generator=generator, dtype=torch.float64).to(dtype)
        gradient = gradient * 10.0 ** torch.arange(-8, 0, 8 / 6)[:6, None].to(dtype)
        parameter.grad = gradient.clone()
        optimizer.step()
        weight = weight + ours.update(gradient, weight, slots, step, 0.1)
    assert error(weight, parameter) <= TOLERANCE[dtype].run


def test_a_step_does_not_change_its_inputs() -> None:
    gradient, weights = torch.ones(2, 3), torch.ones(2, 3)
    AdamW(weight_decay=0.1).update(gradient, weights, {}, 1, 0.1)
    assert torch.equal(gradient, torch.ones(2, 3))
    assert torch.equal(weights, torch.ones(2, 3))


def rule(name: str, learning_rate: float, **settings: object) -> Optimizer:
    return Recipe(optimizer=name, learning_rate=learning_rate, **settings).rule  # type: ignore[arg-type]


def test_names_of_the_command_line() -> None:
    assert rule("adamw", 0.1, weight_decay=0.2) == AdamW(0.1, weight_decay=0.2)
    assert rule("adam", 0.1) == Adam(0.1)
    assert rule("sgd", 0.1) == SGD(0.1)
    assert rule("gd", 0.1, momentum=0.8) == GradientDescent(0.1, 0.8)
    assert rule("flow", 0.1) == GradientFlow(0.1)
    adam = {"adam_beta1": 0.7, "adam_beta2": 0.95, "adam_epsilon": 1e-4}
    assert rule("adamw", 0.05, weight_decay=0.1, **adam) == AdamW(0.05, 0.7, 0.95, 1e-4, 0.1)
    settings = {"momentum": 0.7, "nesterov": True, "weight_decay": 0.05}
    assert rule("sgd", 0.5, **settings) == SGD(0.5, **settings)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("lion", 0.1), "optimizer 'lion' is not known"),
        (("sgd", 0.0), "learning_rate must be a positive number"),
        (("sgd", -1.0), "learning_rate must be a positive number"),
        (("adamw", float("nan")), "learning_rate must be a positive number"),
        (("adamw", float("inf")), "learning_rate must be a positive number"),
        (("adam", 0.1, 0.1), "weight_decay belongs to adamw, adamw_bnb_8bit, gd, sgd; with adam leave it out"),
        (("flow", 0.1, 0.1), "weight_decay"),
        (("adamw", 0.1, -0.1), "weight_decay"),
        (("adamw", 0.1, float("nan")), "weight_decay"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        rule(*arguments[:2], **({"weight_decay": arguments[2]} if len(arguments) > 2 else {}))


def test_adamw_in_8_bits_is_named_where_it_is_missing_and_forecast_as_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(optimizer="adamw_bnb_8bit", weight_decay=0.1, adam_beta2=0.9)
    assert recipe.rule.in_forecasts == AdamW(1e-5, beta2=0.9, weight_decay=0.1)
    assert AdamW().in_forecasts == AdamW()
    slots: list[Slots] = [{}, {}]
    gradient = torch.linspace(-1.0, 1.0, 6).view(2, 3)
    steps = [
        rule.update(gradient, torch.ones(2, 3), each, 1, 0.1)
        for rule, each in zip((recipe.rule, recipe.rule.in_forecasts), slots, strict=True)
    ]
    assert torch.equal(*steps)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="optimizer 'adamw_bnb_8bit' needs bitsandbytes, which is not installed: pip"):
        recipe.check_trainable()
    with pytest.raises(InputError, match="'flow' cannot train; use one of: adam, adamw, gd, sgd"):
        Recipe(optimizer="flow").check_trainable()
