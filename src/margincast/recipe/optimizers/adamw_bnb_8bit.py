"""AdamW whose moments are kept in 8 bits, by bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from margincast.errors import needed
from margincast.recipe.optimizers import OPTIMIZERS
from margincast.recipe.optimizers.adamw import AdamW


@OPTIMIZERS.register("adamw_bnb_8bit")
@dataclass(frozen=True)
class AdamW8bit(AdamW):
    """`bitsandbytes.optim.AdamW` in 8 bits, as transformers has it. Forecasts and rehearsals take it for AdamW."""

    package: ClassVar[str | None] = "bitsandbytes"

    @property
    def in_forecasts(self) -> AdamW:
        return AdamW(self.learning_rate, self.beta1, self.beta2, self.eps, self.weight_decay)

    def without_decay(self) -> AdamW:
        return self.in_forecasts.without_decay()

    def torch_optimizer(self) -> tuple[type[Any], dict[str, Any]]:
        _, settings = super().torch_optimizer()
        return needed("bitsandbytes.optim", "optimizer adamw_bnb_8bit").AdamW, {**settings, "optim_bits": 8}
