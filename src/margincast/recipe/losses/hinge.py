"""SLiC's: f(r) = max(0, 1 - r). Like torch.relu, no slope at the kink itself."""

from __future__ import annotations

import math

from margincast.recipe.loss import Loss
from margincast.recipe.losses import LOSSES

_LOSS = Loss(
    "hinge",
    value=lambda r: (1 - r).relu(),
    slope=lambda r: -(r < 1).to(r.dtype),
    curvature=lambda r: r.new_zeros(r.shape),
    curvature_bound=math.inf,
    convex=True,
)


@LOSSES.register("hinge")
def hinge() -> Loss:
    return _LOSS
