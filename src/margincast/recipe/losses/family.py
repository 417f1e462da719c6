"""What are the value, slope and curvature of every member f of the family of margin losses? (Eq. 17)

Every loss is a function of the margin r alone, elementwise on tensors of any shape. `losses` finds them by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from margincast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Scalar = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Loss:
    """A member f of the family, named as TRL names it.

    value, slope, curvature: f, f' and f''; where f has a kink, the derivatives are those PyTorch's autodiff gives
    curvature_bound: sup |f''|, the Lipschitz constant of the slope; inf where there is none
    parameters: what f was made with beside the margin: `get_loss(name, **parameters)` makes it again
    single_token: f divides log-ratios by the length of the response and is a function of the margin at length 1 only
    reference_free: r leaves the reference out, r = beta * [log pi(chosen) - log pi(rejected)]
    """

    name: str
    value: Scalar
    slope: Scalar
    curvature: Scalar
    curvature_bound: float
    convex: bool
    parameters: Mapping[str, float] = field(default_factory=dict)
    single_token: bool = False
    reference_free: bool = False


def _softplus(x: Tensor) -> Tensor:
    from torch.nn.functional import softplus

    return softplus(x, threshold=40.0)


def _bell(x: Tensor) -> Tensor:
    """sigma(x) sigma(-x), the logistic loss's curvature."""
    return x.sigmoid() * (-x).sigmoid()


# DPO: f(r) = log(1 + exp(-r)), -f'(r) = sigma(-r).
sigmoid = Loss(
    "sigmoid",
    value=lambda r: _softplus(-r),
    slope=lambda r: -(-r).sigmoid(),
    curvature=_bell,
    curvature_bound=0.25,
    convex=True,
)
# SLiC: f(r) = max(0, 1 - r). Like torch.relu, no slope at the kink itself.
hinge = Loss(
    "hinge",
    value=lambda r: (1 - r).relu(),
    slope=lambda r: -(r < 1).to(r.dtype),
    curvature=lambda r: r.new_zeros(r.shape),
    curvature_bound=math.inf,
    convex=True,
)
# GPO's squared loss, f(r) = (r - 1)^2; TRL's scaling of it is `ipo`.
squared = Loss(
    "squared",
    value=lambda r: (r - 1) ** 2,
    slope=lambda r: 2 * (r - 1),
    curvature=lambda r: r.new_full(r.shape, 2.0),
    curvature_bound=2.0,
    convex=True,
)
exponential = Loss(
    "exponential",
    value=lambda r: (-r).exp(),
    slope=lambda r: -(-r).exp(),
    curvature=lambda r: (-r).exp(),
    curvature_bound=math.inf,
    convex=True,
)
truncated_quadratic = Loss(
    "truncated_quadratic",
    value=lambda r: (1 - r).relu() ** 2,
    slope=lambda r: -2 * (1 - r).relu(),
    curvature=lambda r: 2 * (r < 1).to(r.dtype),
    curvature_bound=2.0,
    convex=True,
)


def _savage_curvature(r: Tensor) -> Tensor:
    s = (-r).sigmoid()
    return 2 * s**2 * r.sigmoid() * (2 - 3 * s)


_S = (15 - math.sqrt(33)) / 24  # where 2 s^2 (1 - s) (2 - 3 s) is largest on [0, 1]
savage = Loss(
    "savage",
    value=lambda r: (-r).sigmoid() ** 2,
    slope=lambda r: -2 * (-r).sigmoid() ** 2 * r.sigmoid(),
    curvature=_savage_curvature,
    curvature_bound=2 * _S**2 * (1 - _S) * (2 - 3 * _S),
    convex=False,
)

# Members that need nothing but the margin.
LOSSES: dict[str, Loss] = {
    loss.name: loss for loss in (sigmoid, hinge, squared, exponential, truncated_quadratic, savage)
}


def _tilted(
    name: str, tilt: float, parameters: Mapping[str, float], target: float = 0.0, reference_free: bool = False
) -> Loss:
    """f(r) = log(1 + exp(-x)) + tilt * x at x = r - target: logistic plus a line, with the logistic curvature."""
    return Loss(
        name,
        value=lambda r: _softplus(target - r) + tilt * (r - target),
        slope=lambda r: tilt - (target - r).sigmoid(),
        curvature=lambda r: _bell(r - target),
        curvature_bound=0.25,
        convex=True,
        parameters=parameters,
        single_token=reference_free,
        reference_free=reference_free,
    )


def _cdpo(label_smoothing: float = 0.0) -> Loss:
    """-(1 - e) log sigma(r) - e log sigma(-r), which is log(1 + exp(-r)) + e r: labels are wrong with probability e."""
    _check_smoothing("cdpo", label_smoothing)
    return _tilted("cdpo", label_smoothing, {"label_smoothing": label_smoothing})


def _robust(label_smoothing: float = 0.0) -> Loss:
    """[-(1 - e) log sigma(r) + e log sigma(-r)] / (1 - 2e), which is log(1 + exp(-r)) - e r / (1 - 2e)."""
    _check_smoothing("robust", label_smoothing)
    return _tilted("robust", -label_smoothing / (1 - 2 * label_smoothing), {"label_smoothing": label_smoothing})


def _simpo(simpo_gamma: float = 0.5, label_smoothing: float = 0.0) -> Loss:
    """-log sigma(r - gamma) of the margin without reference, with cDPO's smoothing as in TRL's CPOTrainer."""
    _check_smoothing("simpo", label_smoothing)
    parameters = {"simpo_gamma": simpo_gamma, "label_smoothing": label_smoothing}
    return _tilted("simpo", label_smoothing, parameters, target=simpo_gamma, reference_free=True)


def _sigmoid_norm() -> Loss:
    return Loss("sigmoid_norm", sigmoid.value, sigmoid.slope, sigmoid.curvature, 0.25, convex=True, single_token=True)


def _ipo(beta: float) -> Loss:
    """(m - 1 / (2 beta))^2 of the log-ratio difference m = r / beta, which is ((r - 1/2) / beta)^2."""
    return Loss(
        "ipo",
        value=lambda r: ((r - 0.5) / beta) ** 2,
        slope=lambda r: 2 * (r - 0.5) / beta**2,
        curvature=lambda r: r.new_full(r.shape, 2 / beta**2),
        curvature_bound=2 / beta**2,
        convex=True,
        parameters={"beta": beta},
        single_token=True,
    )


def _exo_pair(label_smoothing: float = 0.0) -> Loss:
    """KL of (q, 1 - q), q = sigma(r), from (1 - e, e). With a = log((1 - e) / e): f' = q (1 - q) (r - a)."""
    _check_smoothing("exo_pair", label_smoothing)
    if label_smoothing == 0.0:
        raise InputError("exo_pair needs a label_smoothing above 0; its authors recommend 1e-3")
    right, wrong = math.log1p(-label_smoothing), math.log(label_smoothing)

    def curvature(r: Tensor) -> Tensor:
        return _bell(r) * (1 + ((-r).sigmoid() - r.sigmoid()) * (r - (right - wrong)))

    return Loss(
        "exo_pair",
        value=lambda r: r.sigmoid() * (-_softplus(-r) - right) + (-r).sigmoid() * (-_softplus(r) - wrong),
        slope=lambda r: _bell(r) * (r - (right - wrong)),
        curvature=curvature,
        curvature_bound=_extremes(curvature, 1.0)[1],
        convex=False,
        parameters={"label_smoothing": label_smoothing},
    )


def _discopop(discopop_tau: float = 0.05) -> Loss:
    """log(1 + exp(-r)) (1 - s) + exp(-r) s with s = sigma(r / tau); exp(-r) s is taken in one exponential, so that it
    vanishes for r -> -inf instead of becoming inf * 0."""
    tau = discopop_tau
    if not (math.isfinite(tau) and tau > 0):
        raise InputError(f"discopop_tau must be a positive number, got {discopop_tau}")

    def mixed(r: Tensor) -> Tensor:
        """exp(-r) s."""
        return (-r - _softplus(-r / tau)).exp()

    def slope(r: Tensor) -> Tensor:
        x, away = r / tau, (-r / tau).sigmoid()
        return -(-r).sigmoid() * away - _softplus(-r) * _bell(x) / tau - mixed(r) * (1 - away / tau)

    def curvature(r: Tensor) -> Tensor:
        x, away = r / tau, (-r / tau).sigmoid()
        turn = (away - x.sigmoid()) / tau**2
        logistic = _bell(r) * away + _bell(x) * (2 / tau * (-r).sigmoid() - turn * _softplus(-r))
        return logistic + mixed(r) * (1 - 2 / tau * away + turn * away)

    least, largest = _extremes(curvature, tau)
    return Loss(
        "discopop",
        value=lambda r: _softplus(-r) * (-r / tau).sigmoid() + mixed(r),
        slope=slope,
        curvature=curvature,
        # For tau > 1 the exponential outgrows s to the left: f'' ~ exp(-r (1 - 1 / tau)).
        curvature_bound=largest if tau <= 1 else math.inf,
        convex=least >= -1e-12,
        parameters={"discopop_tau": discopop_tau},
    )


def _check_smoothing(name: str, value: float) -> None:
    if not 0.0 <= value < 0.5:
        raise InputError(f"label_smoothing of {name} must lie in [0, 0.5), got {value}")


def _extremes(function: Scalar, scale: float) -> tuple[float, float]:
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


# Members with parameters, or special to single tokens: how each is made from its parameters.
FAMILIES: dict[str, Callable[..., Loss]] = {
    "sigmoid_norm": _sigmoid_norm,
    "ipo": _ipo,
    "robust": _robust,
    "cdpo": _cdpo,
    "exo_pair": _exo_pair,
    "discopop": _discopop,
    "simpo": _simpo,
}
