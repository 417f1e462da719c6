"""f(r) = sigma(-r)^2, bounded and not convex."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from margincast.recipe.loss import Closed, Loss
from margincast.recipe.losses import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


def _savage_curvature(r: Tensor) -> Tensor:
    s = (-r).sigmoid()
    return 2 * s**2 * r.sigmoid() * (2 - 3 * s)


_S = (15 - math.sqrt(33)) / 24  # where 2 s^2 (1 - s) (2 - 3 s) is largest on [0, 1]
_LOSS = Loss(
    "savage",
    value=lambda r: (-r).sigmoid() ** 2,
    slope=lambda r: -2 * (-r).sigmoid() ** 2 * r.sigmoid(),
    curvature=_savage_curvature,
    curvature_bound=2 * _S**2 * (1 - _S) * (2 - 3 * _S),
    convex=False,
    closed=Closed(skew=-2.0),
)


@LOSSES.register("savage")
def savage() -> Loss:
    return _LOSS
