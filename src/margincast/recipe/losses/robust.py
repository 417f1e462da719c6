"""Robust DPO: the logistic loss, unbiased under labels that are wrong with probability e."""

from __future__ import annotations

from margincast.recipe.loss import Loss, check_smoothing, tilted
from margincast.recipe.losses import LOSSES


@LOSSES.register("robust")
def robust(label_smoothing: float = 0.0) -> Loss:
    """[-(1 - e) log sigma(r) + e log sigma(-r)] / (1 - 2e), which is log(1 + exp(-r)) - e r / (1 - 2e)."""
    check_smoothing("robust", label_smoothing)
    return tilted("robust", -label_smoothing / (1 - 2 * label_smoothing), {"label_smoothing": label_smoothing})
