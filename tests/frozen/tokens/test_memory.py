"""What a forecast is said to take: what the optimizer remembers counts, and so does what the pairs bring."""

from __future__ import annotations

import pytest
import torch

from margincast.frozen.tokens.memory import memory_needed
from margincast.passes.budgets import Budgets
from tests.recipes import head_recipe

SMOLLM2 = (49_152, 576)
SMALL = Budgets(logit_block=1, softmax_keep=1)  # so that matrices are all there is


@pytest.mark.parametrize(
    ("settings", "remembered"),
    [({"optimizer": "adamw"}, 2), ({"optimizer": "sgd"}, 0), ({"optimizer": "sgd", "momentum": 0.9}, 1)],
)
def test_what_the_optimizer_remembers_is_counted(settings: dict[str, object], remembered: int) -> None:
    plain = memory_needed(head_recipe(optimizer="gd"), SMOLLM2, 1000, torch.float32, SMALL)
    found = memory_needed(head_recipe(**settings), SMOLLM2, 1000, torch.float32, SMALL)
    assert found.bytes - plain.bytes == remembered * 49_152 * 576 * 4


def test_memory_is_linear_in_positions_and_vocabulary() -> None:
    recipe = head_recipe()
    one, two = (memory_needed(recipe, SMOLLM2, 1000 * k, torch.float32).bytes for k in (1, 2))
    assert two - one == 1000 * 576 * 4
    small, large = (memory_needed(recipe, (size, 640), 0, torch.float64) for size in (131_072, 262_144))
    assert large.bytes - small.bytes == large.matrices * 131_072 * 640 * 8
    assert large.matrices == 10, "eight of a step of AdamW, and two recorded states that wait"
