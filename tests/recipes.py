"""Recipes of the unembedding alone, with short names for what most tests set."""

from typing import Any

from margincast.recipe.losses import get_loss
from margincast.recipe.recipe import Recipe

sigmoid = get_loss("sigmoid")


def head_recipe(*, steps: int = 60, batch_size: int = 32, **settings: Any) -> Recipe:
    return Recipe(train="head", max_steps=steps, per_device_train_batch_size=batch_size, **settings)
