"""One optimizer step equals PyTorch's, and the command line's names give the right rules."""

from __future__ import annotations

import pytest
import torch

from margincast.errors import InputError
from margincast.recipe.optimizers import SGD, AdamW, GradientFlow, Slots, make_optimizer
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


def test_names_of_the_command_line() -> None:
    assert make_optimizer("adamw", 0.1, 0.2) == AdamW(0.1, weight_decay=0.2)
    assert make_optimizer("adam", 0.1) == AdamW(0.1, weight_decay=0.0)
    assert make_optimizer("sgd", 0.1) == SGD(0.1)
    assert make_optimizer("gd", 0.1) == SGD(0.1, full_batch=True)
    assert make_optimizer("flow", 0.1) == GradientFlow(0.1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("lion", 0.1), "optimizer 'lion' is not known"),
        (("sgd", 0.0), "learning_rate must be a positive number"),
        (("sgd", -1.0), "learning_rate must be a positive number"),
        (("adamw", float("nan")), "learning_rate must be a positive number"),
        (("adamw", float("inf")), "learning_rate must be a positive number"),
        (("adam", 0.1, 0.1), "weight_decay is decoupled decay and belongs to adamw"),
        (("flow", 0.1, 0.1), "weight_decay"),
        (("adamw", 0.1, -0.1), "weight_decay"),
        (("adamw", 0.1, float("nan")), "weight_decay"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        make_optimizer(*arguments)
