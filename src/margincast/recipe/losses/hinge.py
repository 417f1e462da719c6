"""SLiC's: f(r) = max(0, 1 - r). Like torch.relu, no slope at the kink itself."""

from __future__ import annotations

import math

from margincast.recipe.loss import Closed, Loss
from margincast.recipe.losses import LOSSES

_LOSS = Loss(
    "hinge",
    value=lambda r: (1 - r).relu(),
    slope=lambda r: -(r < 1).to(r.dtype),
    curvature=lambda r: r.new_zeros(r.shape),
    curvature_bound=math.inf,
    convex=True,
    closed=Closed(constant=-1.0, knee=1.0),
)


@LOSSES.register("hinge")
def hinge() -> Loss:
    return _LOSS
