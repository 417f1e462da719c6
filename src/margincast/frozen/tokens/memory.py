"""How much memory does a run of the unembedding take? Known before it starts: states, features, blocks of softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from margincast.frozen.tokens.forecast import TOGETHER
from margincast.passes.budgets import BUDGETS, Budgets
from margincast.recipe.optimizer import Slots
from margincast.recipe.recipe import Recipe

# Matrices of the shape of the unembedding beside what an optimizer remembers. While softmax rows are met: dW, W0 + dW,
# the gradient. In the step itself: these, the next dW, and two that the rule makes on its way.
MEETING, STEPPING = 3, 6
OF_A_FLOW = 8  # of the stages of one step of the integrator
BLOCKS = 4  # of logits, their softmax, and what an evaluation holds beside them


@dataclass(frozen=True)
class Need:
    """What a forecast holds at its peak: `matrices` of (vocabulary, hidden), features of `positions`, and blocks.

    meeting: how many of the matrices there are while blocks are;  number: bytes of one number
    """

    matrices: int
    meeting: int
    vocabulary: int
    hidden: int
    positions: int
    number: int
    budgets: Budgets

    @property
    def bytes(self) -> int:
        blocks = BLOCKS * max(self.budgets.logit_block, self.vocabulary) + self.budgets.softmax_keep
        matrix = self.vocabulary * self.hidden
        numbers = max(self.matrices * matrix, self.meeting * matrix + blocks) + self.positions * self.hidden
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
    # Recorded states wait for one another, beside the last.
    recorded = len(recipe.recorded) - 1
    if recipe.rule.flow:
        matrices = meeting = OF_A_FLOW + recorded
    else:
        slots: Slots = {}
        recipe.rule.update(torch.zeros(1, 1), torch.zeros(1, 1), slots, 1, recipe.rule.learning_rate)
        waiting = len(slots) + min(TOGETHER, recorded) - 1
        matrices, meeting = STEPPING + waiting, MEETING + waiting
    return Need(matrices, meeting, *shape, positions, dtype.itemsize, budgets)
