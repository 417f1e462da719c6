"""What does one optimizer step do to the state? Maps from (gradient, slots) to (change of dW, slots), as PyTorch's.

An optimizer is a frozen record of its settings. `slots` is what it remembers between steps, one tensor per name, shaped
like the state (T, hidden). Weight decay acts on the real rows W0 + dW.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from margincast.errors import InputError

Slots = dict[str, Tensor]


class Optimizer(Protocol):
    """A rule for one step. `step` counts from 1; `learning_rate` is the scheduled one."""

    @property
    def learning_rate(self) -> float: ...

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        """The change of the state for `gradient` at `weights` = W0 + dW, both (T, hidden). Updates `slots`."""
        ...


@dataclass(frozen=True)
class GradientFlow:
    """The continuous limit: step s is time t = learning_rate * s. Always on the full batch."""

    learning_rate: float = 1e-5


@dataclass(frozen=True)
class SGD:
    """Plain SGD (`torch.optim.SGD` with its defaults); `full_batch` makes it gradient descent."""

    learning_rate: float = 1e-5
    full_batch: bool = False

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        return -learning_rate * gradient


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (`torch.optim.AdamW`); with `weight_decay` 0 it is Adam."""

    learning_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        mean = slots.setdefault("mean", gradient.new_zeros(gradient.shape)).lerp_(gradient, 1 - self.beta1)
        square = slots.setdefault("square", gradient.new_zeros(gradient.shape))
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        correction1 = 1 - self.beta1**step
        correction2 = math.sqrt(1 - self.beta2**step)
        change = -learning_rate / correction1 * mean / (square.sqrt() / correction2 + self.eps)
        return change - learning_rate * self.weight_decay * weights if self.weight_decay else change


OPTIMIZERS = ("adamw", "adam", "sgd", "gd", "flow")


def make_optimizer(name: str, learning_rate: float, weight_decay: float = 0.0) -> Optimizer | GradientFlow:
    """The optimizer called `name` on the command line. Raises `InputError` for an unknown name or a decay it lacks."""
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer {name!r} is not known; use one of: {', '.join(OPTIMIZERS)}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be a positive number, got {learning_rate}")
    if weight_decay and name != "adamw":
        raise InputError(f"weight_decay is decoupled decay and belongs to adamw; with {name} leave it 0")
    if name == "flow":
        return GradientFlow(learning_rate)
    if name in ("sgd", "gd"):
        return SGD(learning_rate, full_batch=name == "gd")
    return AdamW(learning_rate, weight_decay=weight_decay)
