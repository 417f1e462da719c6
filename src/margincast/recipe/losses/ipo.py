"""IPO, as TRL scales it."""

from __future__ import annotations

from margincast.recipe.loss import Closed, Loss
from margincast.recipe.losses import LOSSES


@LOSSES.register("ipo")
def ipo(beta: float) -> Loss:
    """(m - 1 / (2 beta))^2 of the log-ratio difference m = r / beta, which is ((r - 1/2) / beta)^2."""
    return Loss(
        "ipo",
        value=lambda r: ((r - 0.5) / beta) ** 2,
        slope=lambda r: 2 * (r - 0.5) / beta**2,
        curvature=lambda r: r.new_full(r.shape, 2 / beta**2),
        curvature_bound=2 / beta**2,
        convex=True,
        closed=Closed(line=2 / beta**2, center=0.5),
        parameters={"beta": beta},
        averaged=True,
    )
