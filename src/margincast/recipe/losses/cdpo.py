"""cDPO: labels are wrong with probability e."""

from __future__ import annotations

from margincast.recipe.loss import Loss, check_smoothing, tilted
from margincast.recipe.losses import LOSSES


@LOSSES.register("cdpo")
def cdpo(label_smoothing: float = 0.0) -> Loss:
    """-(1 - e) log sigma(r) - e log sigma(-r), which is log(1 + exp(-r)) + e r: labels are wrong with probability e."""
    check_smoothing("cdpo", label_smoothing)
    return tilted("cdpo", label_smoothing, {"label_smoothing": label_smoothing})
