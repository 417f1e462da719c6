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

    @property
    def weight_decay(self) -> float: ...

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        """The change of the state for `gradient` at `weights` = W0 + dW, both (T, hidden). Updates `slots`."""
        ...


@dataclass(frozen=True)
class GradientFlow:
    """The continuous limit: step s is time t = learning_rate * s. Always on the full batch."""

    learning_rate: float = 1e-5


@dataclass(frozen=True)
class SGD:
    """SGD as `torch.optim.SGD` takes it; `full_batch` makes it gradient descent.

    momentum: heavy ball, or with `nesterov` looking ahead;  weight_decay: L2, added to the (clipped) gradient
    """

    learning_rate: float = 1e-5
    full_batch: bool = False
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_range("momentum", self.momentum)
        _check_decay(self.weight_decay)
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0")

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weights
        if self.momentum:
            velocity = slots.setdefault("velocity", gradient.new_zeros(gradient.shape)).mul_(self.momentum)
            velocity.add_(gradient)
            gradient = gradient + self.momentum * velocity if self.nesterov else velocity
        return -learning_rate * gradient


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (`torch.optim.AdamW`); with `weight_decay` 0 it is Adam."""

    learning_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_range("adam_beta1", self.beta1)
        _check_range("adam_beta2", self.beta2)
        _check_decay(self.weight_decay)
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise InputError(f"adam_epsilon must be a number >= 0, got {self.eps}")

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        mean = slots.setdefault("mean", gradient.new_zeros(gradient.shape)).lerp_(gradient, 1 - self.beta1)
        square = slots.setdefault("square", gradient.new_zeros(gradient.shape))
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        correction1 = 1 - self.beta1**step
        change = -learning_rate / correction1 * mean / self.divisor(square, step)
        return change - learning_rate * self.weight_decay * weights if self.weight_decay else change

    def divisor(self, square: Tensor, step: int) -> Tensor:
        """What step `step` divides its mean gradient by, entry by entry, when `square` is its slot."""
        return square.sqrt() / math.sqrt(1 - self.beta2**step) + self.eps


OPTIMIZERS = ("adamw", "adam", "sgd", "gd", "flow")
ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


def make_optimizer(
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    adam_beta1: float = ADAM["adam_beta1"],
    adam_beta2: float = ADAM["adam_beta2"],
    adam_epsilon: float = ADAM["adam_epsilon"],
) -> Optimizer | GradientFlow:
    """The optimizer called `name` on the command line, its settings under the names of transformers.

    Raises `InputError` for an unknown name, a value out of range, or a setting that `name` does not have.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer {name!r} is not known; use one of: {', '.join(OPTIMIZERS)}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be a positive number, got {learning_rate}")
    adam = {"adam_beta1": adam_beta1, "adam_beta2": adam_beta2, "adam_epsilon": adam_epsilon}
    if name == "adam" and weight_decay:
        raise InputError("weight_decay is decoupled decay and belongs to adamw; with adam leave it 0")
    if name == "flow" and weight_decay:
        raise InputError("weight_decay belongs to adamw, sgd and gd; with flow leave it 0")
    if name not in ("sgd", "gd") and (momentum or nesterov):
        raise InputError(f"momentum and nesterov belong to sgd and gd; with {name} leave them out")
    if name not in ("adamw", "adam") and adam != ADAM:
        raise InputError(f"{', '.join(ADAM)} belong to adamw and adam; with {name} leave them out")
    if name == "flow":
        return GradientFlow(learning_rate)
    if name in ("sgd", "gd"):
        return SGD(learning_rate, name == "gd", momentum, nesterov, weight_decay)
    return AdamW(learning_rate, adam_beta1, adam_beta2, adam_epsilon, weight_decay)


def _check_range(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise InputError(f"{name} must lie in [0, 1), got {value}")


def _check_decay(value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"weight_decay must be a number >= 0, got {value}")
