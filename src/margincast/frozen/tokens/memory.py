"""How much memory does a run of the unembedding take? Known before it starts: states, features, blocks of softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from margincast.passes.budgets import BUDGETS, Budgets
from margincast.recipe.optimizer import Slots
from margincast.recipe.recipe import Recipe

# Matrices of the shape of the unembedding beside what an optimizer remembers: dW before and after a step, the gradient,
# W0 + dW, and two that the rule of a step makes on its way.
OF_A_STEP = 6
OF_A_FLOW = 8  # of the stages of one step of the integrator
BLOCKS = 4  # of logits, their softmax, and what an evaluation holds beside them


@dataclass(frozen=True)
class Need:
    """What a forecast holds at its peak: `matrices` of (vocabulary, hidden), features of `positions`, and blocks.

    number: bytes of one number
    """

    matrices: int
    vocabulary: int
    hidden: int
    positions: int
    number: int
    budgets: Budgets

    @property
    def bytes(self) -> int:
        block = max(self.budgets.logit_block, self.vocabulary)
        kept = max(self.budgets.softmax_keep, self.vocabulary)
        numbers = self.matrices * self.vocabulary * self.hidden + self.positions * self.hidden + BLOCKS * block + kept
        return numbers * self.number

    def __str__(self) -> str:
        return (
            f"{self.bytes / 1e9:.2g} GB: {self.matrices} matrices of {self.vocabulary} x {self.hidden}, features of "
            f"{self.positions} positions, blocks of softmax"
        )


def memory_needed(
    recipe: Recipe, shape: tuple[int, int], positions: int, dtype: torch.dtype, budgets: Budgets = BUDGETS
) -> Need:
    """Of the forecast of `recipe` in `dtype`. shape: (V, hidden);  positions: of all responses"""
    if recipe.rule.flow:
        matrices = OF_A_FLOW + len(recipe.recorded)
    else:
        slots: Slots = {}
        recipe.rule.update(torch.zeros(1, 1), torch.zeros(1, 1), slots, 1, recipe.rule.learning_rate)
        matrices = OF_A_STEP + len(slots)
    return Need(matrices, *shape, positions, dtype.itemsize, budgets)
