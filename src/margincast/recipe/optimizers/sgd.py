"""SGD: along the gradient, with momentum and L2 where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from margincast.errors import InputError
from margincast.recipe.optimizer import Optimizer, Slots, check_decay, check_range
from margincast.recipe.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from torch import Tensor


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True)
class SGD(Optimizer):
    """`torch.optim.SGD`.

    momentum: heavy ball, or with `nesterov` looking ahead;  weight_decay: L2, added to the (clipped) gradient
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    settings: ClassVar[Mapping[str, str]] = {name: name for name in ("momentum", "nesterov", "weight_decay")}
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("momentum", self.momentum)
        check_decay(self.weight_decay)
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0")

    @property
    def decay(self) -> float:
        return self.weight_decay

    def without_decay(self) -> SGD:
        return replace(self, weight_decay=0.0)

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weights
        if self.momentum:
            velocity = slots.setdefault("velocity", gradient.new_zeros(gradient.shape)).mul_(self.momentum)
            velocity.add_(gradient)
            gradient = gradient + self.momentum * velocity if self.nesterov else velocity
        return -learning_rate * gradient

    def torch_optimizer(self) -> tuple[type[Any], dict[str, Any]]:
        import torch

        return torch.optim.SGD, {"lr": self.learning_rate, "momentum": self.momentum, "nesterov": self.nesterov}
