"""Gradient flow: the limit of gradient descent for small learning rates. (Eq. 6-7)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers import OPTIMIZERS


@OPTIMIZERS.register("flow")
@dataclass(frozen=True)
class GradientFlow(Optimizer):
    """Step s is time t = learning_rate * s, always on the full batch."""

    whole_batch: ClassVar[bool] = True
    flow: ClassVar[bool] = True
