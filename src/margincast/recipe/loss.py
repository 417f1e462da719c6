"""What is a loss here? A scalar function f of the margin, with its first two derivatives. (Eq. 17)"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from margincast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Scalar = Callable[["Tensor"], "Tensor"]


class Closed(NamedTuple):
    """The slope f'(r) = constant + line (r - center) where r < knee, and beside it, with s = sigma(target - r),

    s (logistic + (1 - s) (bell (r - center) + skew s)) + growth exp(-r)
    """

    constant: float = 0.0
    line: float = 0.0
    center: float = 0.0
    knee: float = math.inf
    target: float = 0.0
    logistic: float = 0.0
    bell: float = 0.0
    skew: float = 0.0
    growth: float = 0.0


@dataclass(frozen=True)
class Loss:
    """A member f of the family, named as TRL names it.

    value, slope, curvature: f, f' and f''; where f has a kink, the derivatives are those PyTorch's autodiff gives
    curvature_bound: sup |f''|, the Lipschitz constant of the slope; inf where there is none
    parameters: what f was made with beside the margin: `get_loss(name, **parameters)` makes it again
    averaged: f is of a margin whose log-ratios are divided by the length of their response, where others take sums
    reference_free: r leaves the reference out, r = beta * [log pi(chosen) - log pi(rejected)]
    closed: f' once more, as the compiled kernel takes it, where it is of that form; else the kernel asks `slope`
    """

    name: str
    value: Scalar
    slope: Scalar
    curvature: Scalar
    curvature_bound: float
    convex: bool
    parameters: Mapping[str, float] = field(default_factory=dict)
    averaged: bool = False
    reference_free: bool = False
    closed: Closed | None = None


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    from torch.nn.functional import softplus as of_torch

    return of_torch(x, threshold=40.0)


def bell(x: Tensor) -> Tensor:
    """sigma(x) sigma(-x), the logistic loss's curvature."""
    return x.sigmoid() * (-x).sigmoid()


def tilted(
    name: str, tilt: float, parameters: Mapping[str, float], target: float = 0.0, reference_free: bool = False
) -> Loss:
    """f(r) = log(1 + exp(-x)) + tilt * x at x = r - target: logistic plus a line, with the logistic curvature."""
    return Loss(
        name,
        value=lambda r: softplus(target - r) + tilt * (r - target),
        slope=lambda r: tilt - (target - r).sigmoid(),
        curvature=lambda r: bell(r - target),
        curvature_bound=0.25,
        convex=True,
        parameters=parameters,
        averaged=reference_free,
        reference_free=reference_free,
        closed=Closed(constant=tilt, target=target, logistic=-1.0),
    )


def check_smoothing(name: str, value: float) -> None:
    """Raises `InputError` for a share of wrong labels that is none."""
    if not 0.0 <= value < 0.5:
        raise InputError(f"label_smoothing of {name} must lie in [0, 0.5), got {value}")


def extremes(function: Scalar, scale: float) -> tuple[float, float]:
    """min of `function` and max of its size over the line, where it varies at the scales 1 and `scale`, flat far out.

    The maximum is refined to rounding; the minimum is that of the first grid.
    """
    import torch

    grid = torch.linspace(-60.0, 60.0, 24_001, dtype=torch.float64)
    points = torch.cat([grid, scale * grid])
    width = 60.0 / 12_000 * max(1.0, scale)
    least, best = float(function(points).min()), 0.0
    for _ in range(4):
        values = function(points).abs()
        best = max(best, float(values.max()))
        points = points[values.argmax()] + width * torch.linspace(-1.0, 1.0, 2_001, dtype=torch.float64)
        width /= 100.0
    return least, best
