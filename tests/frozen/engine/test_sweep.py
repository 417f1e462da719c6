"""Is every setting of a sweep what it is alone?"""

from __future__ import annotations

import math

import pytest
import torch

from margincast.errors import InputError, StatedFailure
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.frozen.engine.sweep import Setting, sweep
from margincast.recipe.batches import Batch, batch_order, full_batch
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers import SGD, AdamW
from margincast.recipe.schedule import schedule
from tests.problems import random_space
from tests.tolerances import TOLERANCE, error

STEPS = 12


def subset(rows: torch.Tensor) -> list[Batch]:
    return [Batch(rows, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))] * STEPS


def settings() -> list[Setting]:
    """Strengths, rates, optimizers, schedules, clipping, subsets of the pairs, and orders of minibatches."""
    whole = [Setting(AdamW(0.02 * k), 0.1 * k, full_batch(30, STEPS), schedule("linear", STEPS)) for k in (1, 2, 3)]
    parts = [Setting(SGD(0.5, momentum=0.9), 0.3, subset(torch.arange(k, 30, 3)), max_grad_norm=0.1) for k in range(3)]
    seeds = [Setting(AdamW(0.02), 0.3, batch_order(30, 7, STEPS, seed)) for seed in range(3)]
    return whole + parts + seeds


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_each_setting_is_what_it_is_alone(dtype: torch.dtype, loss: str) -> None:
    space = random_space(30, 50, 4, 9.0, 0, dtype)
    start = space.zeros() + 0.1
    together = torch.stack(list(sweep(space, settings(), unembedding=start, loss=get_loss(loss))))
    assert together.shape == (STEPS, 9, 4, 50)
    for number, setting in enumerate(settings()):
        own = TokenSpace(space.features, space.chosen, space.rejected, setting.beta, space.tokens)
        alone = simulate(
            own,
            setting.optimizer,
            setting.batches,
            unembedding=start,
            loss=get_loss(loss),
            factor=setting.factor,
            max_grad_norm=setting.max_grad_norm,
        )
        assert error(together[:, number], torch.stack(list(alone))) <= TOLERANCE[dtype].run


def test_the_setting_that_diverges_is_named() -> None:
    space = random_space(6, 5, 3, 1.0, 1)
    fine, wild = (Setting(SGD(rate), 1.0, full_batch(6, 5)) for rate in (0.1, math.inf))
    with pytest.raises(StatedFailure, match="setting 1 of the sweep diverged at step 1"):
        list(sweep(space, [fine, wild], unembedding=space.zeros()))


def test_what_cannot_be_swept_is_said() -> None:
    space = random_space(6, 5, 3, 1.0, 1)
    with pytest.raises(InputError, match="at least one setting"):
        next(sweep(space, [], unembedding=space.zeros()))
    two = [Setting(SGD(0.1), beta, full_batch(6, 1)) for beta in (0.1, 0.2)]
    with pytest.raises(InputError, match=r"made for beta 0\.1"):
        next(sweep(space, two, unembedding=space.zeros(), loss=get_loss("ipo", 0.1)))
