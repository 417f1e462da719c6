"""EXO of pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from margincast.errors import InputError
from margincast.recipe.loss import Closed, Loss, bell, check_smoothing, extremes, softplus
from margincast.recipe.losses import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("exo_pair")
def exo_pair(label_smoothing: float = 0.0) -> Loss:
    """KL of (q, 1 - q), q = sigma(r), from (1 - e, e). With a = log((1 - e) / e): f' = q (1 - q) (r - a)."""
    check_smoothing("exo_pair", label_smoothing)
    if label_smoothing == 0.0:
        raise InputError("exo_pair needs a label_smoothing above 0; its authors recommend 1e-3")
    right, wrong = math.log1p(-label_smoothing), math.log(label_smoothing)

    def curvature(r: Tensor) -> Tensor:
        return bell(r) * (1 + ((-r).sigmoid() - r.sigmoid()) * (r - (right - wrong)))

    return Loss(
        "exo_pair",
        value=lambda r: r.sigmoid() * (-softplus(-r) - right) + (-r).sigmoid() * (-softplus(r) - wrong),
        slope=lambda r: bell(r) * (r - (right - wrong)),
        curvature=curvature,
        curvature_bound=extremes(curvature, 1.0)[1],
        convex=False,
        closed=Closed(center=right - wrong, bell=1.0),
        parameters={"label_smoothing": label_smoothing},
    )
