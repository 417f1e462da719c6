"""How far has a run gone? Its path length, the sum of its learning rates.

AdamW moves every weight by about the learning rate a step, whatever the size of the gradient, the loss or beta. So runs
at the same path length have gone about as far: 40 steps of 1e-5 and 20 steps of 2e-5. (Measured: docs.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from margincast.recipe.recipe import Recipe

UNIT = 1e-5  # learning rate in whose steps path lengths are given: numbers of the size of a run's steps
ADAPTER_UNIT = 2e-4  # the same for LoRA, whose learning rates are about twenty times as large


def learning_rates(recipe: Recipe) -> list[float]:
    """The learning rate of each step."""
    return [recipe.learning_rate * recipe.factor(done) for done in range(recipe.steps)]


def merged(rates: Sequence[float], steps: int) -> list[float]:
    """`rates` added up in `steps` groups of neighbours, as equal as can be: the same path in fewer steps."""
    ends = [round(step * len(rates) / steps) for step in range(steps + 1)]
    return [sum(rates[first:last]) for first, last in pairwise(ends)]
