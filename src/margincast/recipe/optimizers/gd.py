"""Gradient descent: SGD on all pairs at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from margincast.recipe.optimizers import OPTIMIZERS
from margincast.recipe.optimizers.sgd import SGD


@OPTIMIZERS.register("gd")
@dataclass(frozen=True)
class GradientDescent(SGD):
    """`SGD` whose batch is the whole training set."""

    whole_batch: ClassVar[bool] = True
