"""DPO of log-ratios divided by the length of their response: DPO's own where that is 1."""

from __future__ import annotations

from dataclasses import replace

from margincast.recipe.loss import Loss
from margincast.recipe.losses import LOSSES

_LOSS = replace(LOSSES.get("sigmoid")(), name="sigmoid_norm", averaged=True)


@LOSSES.register("sigmoid_norm")
def sigmoid_norm() -> Loss:
    return _LOSS
