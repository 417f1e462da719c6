"""What does one optimizer step do to the state, and what can be said of a run of such steps?

An optimizer is a frozen record of its settings, with a map from (gradient, slots) to (change of dW, slots), as
PyTorch's. `slots` is what it remembers between steps, one tensor per name, shaped like the state (T, hidden). What
else it can do it says itself: nothing outside asks which optimizer it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from margincast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Slots = dict[str, "Tensor"]


class Rule(Protocol):
    """What a simulation asks of an optimizer."""

    @property
    def learning_rate(self) -> float: ...

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        """The change of the state for `gradient` at `weights` = W0 + dW, both (T, hidden). Updates `slots`.

        step: from 1;  learning_rate: the scheduled one
        """
        ...


@dataclass(frozen=True)
class Optimizer:
    """A rule for one step.

    settings: the recipe's names of what it takes beside the learning rate, with the names of its own fields
    whole_batch: every step sees every pair
    linear: a step adds and scales past gradients, all entries alike, so that dW stays a combination of pairs
    flow: the limit of small steps, integrated in time t = learning_rate * steps instead of stepped
    path_known: a step moves every weight by about the learning rate, so that a run's path length is known before it
    averaged: beta1 of an optimizer that divides a running mean of the gradients by `divisor`; None for others
    package: what has to be installed to train with it
    """

    learning_rate: float = 1e-5

    settings: ClassVar[Mapping[str, str]] = {}
    whole_batch: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    flow: ClassVar[bool] = False
    path_known: ClassVar[bool] = False
    package: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be a positive number, got {self.learning_rate}")

    @property
    def decay(self) -> float:
        """How strongly it pulls the weights themselves in."""
        return 0.0

    @property
    def averaged(self) -> float | None:
        return None

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        """See `Rule`."""
        raise InputError(f"{type(self).__name__} has no rule for a step; give it `update`")

    def divisor(self, slots: Slots, step: int) -> Tensor:
        """What step `step` divided its mean gradient by, entry by entry, where it is `averaged`."""
        raise InputError(f"{type(self).__name__} divides its gradients by nothing known; give it `divisor`")

    @property
    def in_forecasts(self) -> Optimizer:
        """What forecasts and rehearsals take it for."""
        return self

    def without_decay(self) -> Optimizer:
        """The same rule without weight decay."""
        return self

    def torch_optimizer(self) -> tuple[type[Any], dict[str, Any]] | None:
        """The optimizer of PyTorch that is this one, with its settings; None where it cannot train a model."""
        return None


def check_range(name: str, value: float) -> None:
    """Raises `InputError` for a share of the past that is none."""
    if not 0.0 <= value < 1.0:
        raise InputError(f"{name} must lie in [0, 1), got {value}")


def check_decay(value: float) -> None:
    """Raises `InputError` for a weight decay that is none."""
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"weight_decay must be a number >= 0, got {value}")
