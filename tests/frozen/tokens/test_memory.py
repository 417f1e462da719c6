"""What a forecast is said to take: what the optimizer remembers counts, and so does what the pairs bring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from margincast.features.positions import Positions
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.frozen.tokens.memory import memory_needed
from margincast.passes.budgets import Budgets
from tests.frozen.tokens.test_decomposition import problem
from tests.problems import make_pairs
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


class _Largest(TorchDispatchMode):
    """The most numbers that an operation within made or filled."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_a_vocabulary_of_262144_is_met_a_block_at_a_time() -> None:
    """Gemma 3's: a forecast with AdamW holds no tensor larger than the blocks that are said, and no fewer digits."""
    vocabulary, budgets = 262_144, Budgets(logit_block=4 * 262_144, softmax_keep=1)
    train, heldout, unembedding, _ = problem(1, vocabulary, 2, 4, 5)
    recipe = head_recipe(steps=2, eval_steps=2, learning_rate=1e-2)
    pairs = make_pairs(4), make_pairs(2, start=4)
    positions = Positions(train, heldout, *pairs, unembedding, None, model="")
    exact = forecast_positions(positions, recipe, dtype=torch.float64, budgets=budgets)
    with _Largest() as largest:
        found = forecast_positions(positions, recipe, dtype=torch.float32, budgets=budgets)
    assert len(train.hidden) > 8, "the positions are several blocks"
    assert largest.numbers <= 3 * 4 * vocabulary, "logits, their softmax, and their change"
    for split in ("train", "heldout"):
        ours, theirs = getattr(found, split).margins, getattr(exact, split).margins
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
