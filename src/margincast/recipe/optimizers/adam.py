"""Adam: a running mean of the gradients, divided by the root of a running mean of their squares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from margincast.errors import InputError
from margincast.recipe.optimizer import Optimizer, Slots, check_range
from margincast.recipe.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from torch import Tensor


@OPTIMIZERS.register("adam")
@dataclass(frozen=True)
class Adam(Optimizer):
    """`torch.optim.Adam` without weight decay."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    settings: ClassVar[Mapping[str, str]] = {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "eps"}
    path_known: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("adam_beta1", self.beta1)
        check_range("adam_beta2", self.beta2)
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise InputError(f"adam_epsilon must be a number >= 0, got {self.eps}")

    @property
    def averaged(self) -> float | None:
        return self.beta1

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        mean = slots.setdefault("mean", gradient.new_zeros(gradient.shape)).lerp_(gradient, 1 - self.beta1)
        square = slots.setdefault("square", gradient.new_zeros(gradient.shape))
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        correction1 = 1 - self.beta1**step
        change = -learning_rate / correction1 * mean / self.divisor(slots, step)
        return change - learning_rate * self.decay * weights if self.decay else change

    def divisor(self, slots: Slots, step: int) -> Tensor:
        return slots["square"].sqrt() / math.sqrt(1 - self.beta2**step) + self.eps

    def torch_optimizer(self) -> tuple[type[Any], dict[str, Any]]:
        from torch.optim import AdamW

        return AdamW, {"lr": self.learning_rate, "betas": (self.beta1, self.beta2), "eps": self.eps}
