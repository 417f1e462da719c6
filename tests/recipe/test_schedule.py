"""Learning-rate schedules are those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from margincast.errors import InputError
from margincast.recipe.schedule import SCHEDULES, schedule


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps, warmup", [(1, 0), (10, 0), (10, 3), (10, 10), (7, 20)])
def test_factors_are_those_of_transformers(name: str, steps: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    factor = schedule(name, steps, warmup)
    for done in range(steps):
        assert factor(done) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"lr_scheduler_type 'polynomial' is not known.*cosine"):
        schedule("polynomial", 10)
