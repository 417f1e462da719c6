"""DiscoPOP: logistic to the left, exponential to the right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from margincast.errors import InputError
from margincast.recipe.loss import Loss, bell, extremes, softplus
from margincast.recipe.losses import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("discopop")
def discopop(discopop_tau: float = 0.05) -> Loss:
    """log(1 + exp(-r)) (1 - s) + exp(-r) s with s = sigma(r / tau); exp(-r) s is taken in one exponential, so that it
    vanishes for r -> -inf instead of becoming inf * 0."""
    tau = discopop_tau
    if not (math.isfinite(tau) and tau > 0):
        raise InputError(f"discopop_tau must be a positive number, got {discopop_tau}")

    def mixed(r: Tensor) -> Tensor:
        """exp(-r) s."""
        return (-r - softplus(-r / tau)).exp()

    def slope(r: Tensor) -> Tensor:
        x, away = r / tau, (-r / tau).sigmoid()
        return -(-r).sigmoid() * away - softplus(-r) * bell(x) / tau - mixed(r) * (1 - away / tau)

    def curvature(r: Tensor) -> Tensor:
        x, away = r / tau, (-r / tau).sigmoid()
        turn = (away - x.sigmoid()) / tau**2
        logistic = bell(r) * away + bell(x) * (2 / tau * (-r).sigmoid() - turn * softplus(-r))
        return logistic + mixed(r) * (1 - 2 / tau * away + turn * away)

    least, largest = extremes(curvature, tau)
    return Loss(
        "discopop",
        value=lambda r: softplus(-r) * (-r / tau).sigmoid() + mixed(r),
        slope=slope,
        curvature=curvature,
        # For tau > 1 the exponential outgrows s to the left: f'' ~ exp(-r (1 - 1 / tau)).
        curvature_bound=largest if tau <= 1 else math.inf,
        convex=least >= -1e-12,
        parameters={"discopop_tau": discopop_tau},
    )
