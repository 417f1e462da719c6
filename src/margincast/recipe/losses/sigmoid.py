"""DPO's own: f(r) = log(1 + exp(-r)), -f'(r) = sigma(-r)."""

from __future__ import annotations

from margincast.recipe.loss import Closed, Loss, bell, softplus
from margincast.recipe.losses import LOSSES

_LOSS = Loss(
    "sigmoid",
    value=lambda r: softplus(-r),
    slope=lambda r: -(-r).sigmoid(),
    curvature=bell,
    curvature_bound=0.25,
    convex=True,
    closed=Closed(logistic=-1.0),
)


@LOSSES.register("sigmoid")
def sigmoid() -> Loss:
    return _LOSS
