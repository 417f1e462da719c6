"""GPO's squared loss, f(r) = (r - 1)^2; TRL's scaling of it is `ipo`."""

from __future__ import annotations

from margincast.recipe.loss import Closed, Loss
from margincast.recipe.losses import LOSSES

_LOSS = Loss(
    "squared",
    value=lambda r: (r - 1) ** 2,
    slope=lambda r: 2 * (r - 1),
    curvature=lambda r: r.new_full(r.shape, 2.0),
    curvature_bound=2.0,
    convex=True,
    closed=Closed(line=2.0, center=1.0),
)


@LOSSES.register("squared")
def squared() -> Loss:
    return _LOSS
