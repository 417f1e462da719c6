"""f(r) = max(0, 1 - r)^2."""

from __future__ import annotations

from margincast.recipe.loss import Closed, Loss
from margincast.recipe.losses import LOSSES

_LOSS = Loss(
    "truncated_quadratic",
    value=lambda r: (1 - r).relu() ** 2,
    slope=lambda r: -2 * (1 - r).relu(),
    curvature=lambda r: 2 * (r < 1).to(r.dtype),
    curvature_bound=2.0,
    convex=True,
    closed=Closed(line=2.0, center=1.0, knee=1.0),
)


@LOSSES.register("truncated_quadratic")
def truncated_quadratic() -> Loss:
    return _LOSS
