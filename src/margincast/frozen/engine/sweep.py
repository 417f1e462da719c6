"""How do many settings run for the price of a few? Their states meet the features in the same pass.

Strengths beta, learning rates, optimizers, subsets of the pairs and seeds: one state each, (T, hidden), all of them
advanced while a row of the features is in cache. What is read once for all is the union of the settings' batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from margincast.errors import InputError, StatedFailure
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss, sigmoid
from margincast.recipe.optimizers import Optimizer, Slots


@dataclass(frozen=True)
class Setting:
    """One run of a sweep. batches: as for `simulate`, indices into the pairs of the common space."""

    optimizer: Optimizer
    beta: float
    batches: Iterable[Batch]
    factor: Callable[[int], float] = lambda done: 1.0
    max_grad_norm: float | None = None


def sweep(
    space: TokenSpace, settings: Sequence[Setting], *, unembedding: Tensor, loss: Loss = sigmoid
) -> Iterator[Tensor]:
    """Yield the states of all settings after every step, (settings, T, hidden); each as `simulate` alone gives it.

    `space.beta` is not used. Ends with the setting that has the fewest batches.

    Raises `InputError` for no settings, for features that are not finite, and for a loss made for one beta
    when the settings have others; `StatedFailure`, naming the setting, when a state stops being finite.
    """
    if not settings:
        raise InputError("a sweep needs at least one setting")
    made_for = loss.parameters.get("beta")
    if made_for is not None and any(setting.beta != made_for for setting in settings):
        raise InputError(f"the loss {loss.name!r} was made for beta {made_for}; sweep each beta with its own loss")
    beta = torch.tensor([setting.beta for setting in settings], dtype=torch.float64)
    states = torch.stack([space.zeros()] * len(settings))
    slots: list[Slots] = [{} for _ in settings]
    for done, batches in enumerate(zip(*(setting.batches for setting in settings), strict=False)):
        rows, places = _union(tuple(batch.rows for batch in batches))
        weights = torch.zeros(len(rows), len(settings), dtype=torch.float64)
        for column, (place, batch) in enumerate(zip(places, batches, strict=True)):
            weights[:, column].index_add_(0, place, batch.weights)
        at = unembedding + states if loss.reference_free else states
        gradients = space.gradients(at, loss, rows, weights, beta)
        states = states.clone()
        for number, setting in enumerate(settings):
            gradient, state = gradients[number], states[number]
            if setting.max_grad_norm:
                gradient = gradient * (setting.max_grad_norm / (space.norm(gradient) + 1e-6)).clamp(max=1.0)
            rate = setting.optimizer.learning_rate * setting.factor(done)
            state += setting.optimizer.update(gradient, unembedding + state, slots[number], done + 1, rate)
        finite = states.flatten(1).isfinite().all(dim=1)
        if not bool(finite.all()):
            space.check()  # a feature that is not finite shows here, in the first step that meets it
            bad = int((~finite).nonzero()[0])
            raise StatedFailure(f"setting {bad} of the sweep diverged at step {done + 1}; lower its learning_rate")
        yield states


# Full batches ask with the same tensors at every step; tensors are told apart by identity.
@lru_cache(maxsize=4)
def _union(rows: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All rows that occur, and where each batch's rows are among them."""
    union, inverse = torch.unique(torch.cat(rows), return_inverse=True)
    return union, inverse.split([len(part) for part in rows])
