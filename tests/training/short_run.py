"""A run of six steps that tests stop, watch and repeat; `trained` in conftest.py makes it."""

from __future__ import annotations

from collections.abc import Callable

from margincast.recipe.recipe import Recipe
from margincast.records import Trajectory

RECIPE = Recipe(beta=0.1, learning_rate=3e-3, max_steps=6, per_device_train_batch_size=4, eval_steps=2)
Trained = Callable[..., Trajectory]
