"""f(r) = exp(-r)."""

from __future__ import annotations

import math

from margincast.recipe.loss import Closed, Loss
from margincast.recipe.losses import LOSSES

_LOSS = Loss(
    "exponential",
    value=lambda r: (-r).exp(),
    slope=lambda r: -(-r).exp(),
    curvature=lambda r: (-r).exp(),
    curvature_bound=math.inf,
    convex=True,
    closed=Closed(growth=-1.0),
)


@LOSSES.register("exponential")
def exponential() -> Loss:
    return _LOSS
