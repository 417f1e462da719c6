"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from margincast.recipe.optimizer import check_decay
from margincast.recipe.optimizers import OPTIMIZERS
from margincast.recipe.optimizers.adam import Adam


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True)
class AdamW(Adam):
    """`torch.optim.AdamW`; with `weight_decay` 0 it is Adam."""

    weight_decay: float = 0.0

    settings: ClassVar[Mapping[str, str]] = {**Adam.settings, "weight_decay": "weight_decay"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.weight_decay)

    @property
    def decay(self) -> float:
        return self.weight_decay

    def without_decay(self) -> AdamW:
        return replace(self, weight_decay=0.0)
