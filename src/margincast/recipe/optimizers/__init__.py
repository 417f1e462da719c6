"""Which optimizers are there, and how is one made from the recipe's settings?

An optimizer is one module of this package, named as a user names it, or an entry point of the group
`margincast.optimizers` in another package: a subclass of `recipe.optimizer.Optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margincast.errors import InputError
from margincast.recipe.optimizer import Optimizer
from margincast.registry import Registry

OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer", "margincast.recipe.optimizers", "margincast.optimizers")
"""The optimizers by name. `OPTIMIZERS.register(name)` enters a subclass of `Optimizer`."""


def make_optimizer(name: str, learning_rate: float, settings: Mapping[str, tuple[Any, Any]]) -> Optimizer:
    """The optimizer called `name`.

    settings: the recipe's settings of optimizers, each with its default

    Raises `InputError` for an unknown name, a value out of range, or a setting that `name` does not take.
    """
    kind = OPTIMIZERS.get(name)
    for setting, (value, default) in settings.items():
        if value != default and setting not in kind.settings:
            takers = [other for other, each in OPTIMIZERS.all().items() if setting in each.settings]
            raise InputError(f"{setting} belongs to {', '.join(takers)}; with {name} leave it out")
    taken = {name_there: settings[setting][0] for setting, name_there in kind.settings.items() if setting in settings}
    return kind(learning_rate, **taken)
