"""f(r) = max(0, 1 - r)^2."""

from __future__ import annotations

from margincast.recipe.loss import Loss
from margincast.recipe.losses import LOSSES

_LOSS = Loss(
    "truncated_quadratic",
    value=lambda r: (1 - r).relu() ** 2,
    slope=lambda r: -2 * (1 - r).relu(),
    curvature=lambda r: 2 * (r < 1).to(r.dtype),
    curvature_bound=2.0,
    convex=True,
)


@LOSSES.register("truncated_quadratic")
def truncated_quadratic() -> Loss:
    return _LOSS
