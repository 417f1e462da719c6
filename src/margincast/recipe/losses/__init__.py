"""Which scalar losses f(r) of the margin can be trained? By name, by a function of one's own, or refused. (Eq. 17)

The dynamics need only -f'. A loss is one module of this package, named as TRL names it, or an entry point of the group
`margincast.losses` in another package: a function of the parameters it takes (and `beta`, where its formula has it)
that gives a `Loss`. `docs/losses.md` says of every loss of TRL whether it is a function of the margin.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from margincast.errors import InputError
from margincast.recipe.loss import Loss, Scalar
from margincast.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSSES", "LOSS_PARAMETERS", "Loss", "custom_loss", "get_loss", "refuse_averaged"]

LOSSES: Registry[Callable[..., Loss]] = Registry("loss_type", "margincast.recipe.losses", "margincast.losses")
"""The losses by name. `LOSSES.register(name)` enters a function of the parameters it takes that gives a `Loss`."""
# The parameters that losses take beside beta, under TRL's names.
LOSS_PARAMETERS = ("label_smoothing", "discopop_tau", "simpo_gamma")

_BOTH = "needs the log-ratios of both responses, not only their difference"
_BATCH = "sorts the batch, so that the loss of a pair depends on the other pairs"
REFUSED = {
    "nca_pair": _BOTH,
    "bco_pair": _BOTH,
    "sppo_hard": _BOTH,
    "apo_zero": _BOTH,
    "apo_down": _BOTH,
    "aot": _BATCH,
    "aot_unpaired": _BATCH,
    "sft": "is the log-probability of the chosen response alone",
}


def get_loss(
    loss: str | Loss, beta: float | None = None, *, without_reference: bool = False, **parameters: float | None
) -> Loss:
    """The loss called `loss`, or `loss` itself when it is one.

    beta: needed by ipo, whose formula has it
    without_reference: whether the caller can give margins without the reference (SimPO)
    parameters: `LOSS_PARAMETERS`; None stands for TRL's default

    Raises `InputError` for a name margincast does not have, with the reason where TRL has it; for a parameter that
    `loss` does not take; for a value out of range.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    member = _named(loss, beta, given) if isinstance(loss, str) else loss
    if member is loss and given:
        raise InputError(f"the loss {member.name!r} is already made; give {', '.join(given)} where it is made")
    if beta is not None and member.parameters.get("beta", beta) != beta:
        raise InputError(f"the loss {member.name!r} was made for beta {member.parameters['beta']}, not {beta}")
    if member.reference_free and not without_reference:
        raise InputError(
            f"loss_type {member.name!r} leaves the reference out, so that its margins start at the model's own "
            "log-ratios; this computation starts them at 0"
        )
    return member


def loss_parameters(name: str) -> tuple[str, ...]:
    """The parameters that the loss called `name` takes, beta aside. Raises `InputError` for a name that is none."""
    if name in REFUSED:
        raise InputError(f"loss_type {name!r} is not a function of the margin: it {REFUSED[name]}")
    return tuple(each for each in inspect.signature(LOSSES.get(name)).parameters if each != "beta")


def refuse_averaged(loss: Loss, single_token: bool, what: str) -> None:
    """Raises `InputError` for a loss that averages over tokens of which responses have several: `what` knows sums."""
    if loss.averaged and not single_token:
        raise InputError(
            f"loss_type {loss.name!r} divides log-ratios by the length of the response, and {what} knows margins as "
            "sums over its tokens; `train`, and all that is of train head, take it"
        )


def _named(name: str, beta: float | None, given: dict[str, float]) -> Loss:
    taken, make = loss_parameters(name), LOSSES.get(name)
    for parameter, value in given.items():
        if parameter not in taken:
            hint = "; sigmoid with label smoothing is called cdpo" if parameter == "label_smoothing" else ""
            raise InputError(f"loss_type {name!r} takes no {parameter}{hint}")
        if not math.isfinite(value):
            raise InputError(f"{parameter} must be a number, got {value}")
    if "beta" in inspect.signature(make).parameters:
        if beta is None or not (math.isfinite(beta) and beta > 0):
            raise InputError(f"loss_type {name!r} needs a positive beta, got {beta}")
        return make(beta=beta, **given)
    return make(**given)


def custom_loss(name: str, function: Scalar, *, curvature_bound: float = math.inf, convex: bool = False) -> Loss:
    """A loss from any scalar function of the margin written in PyTorch; its derivatives come from autodiff.

    function: margins of any shape to losses of the same shape, each from its own margin alone

    Raises `InputError` for a function that is not elementwise, or that autodiff cannot follow.
    """
    import torch

    def derivative(of: Scalar) -> Scalar:
        def differentiated(r: Tensor) -> Tensor:
            with torch.enable_grad():
                # A non-leaf copy, so that the result can itself be differentiated with respect to r.
                point = r * 1.0 if r.requires_grad else r.detach().requires_grad_()
                total = of(point).sum()
                if not total.requires_grad:
                    return torch.zeros_like(r)
                (out,) = torch.autograd.grad(total, point, create_graph=r.requires_grad, materialize_grads=True)
            return out if r.requires_grad else out.detach()

        return differentiated

    if name in LOSSES.built_in or name in REFUSED:
        raise InputError(f"{name!r} is already the name of a loss; give your own another name")
    probe = torch.tensor([-1.0, 0.25, 2.0], dtype=torch.float64, requires_grad=True)
    values = function(probe)
    if not isinstance(values, torch.Tensor) or values.shape != probe.shape:
        raise InputError(f"loss {name!r} must give one loss per margin; write it elementwise, in PyTorch")
    if not values.requires_grad:
        raise InputError(f"loss {name!r} cannot be differentiated; write it with PyTorch operations on the margins")
    alone = torch.cat([function(margin[None]) for margin in probe])
    if not torch.allclose(values, alone, rtol=1e-12, atol=1e-12):
        raise InputError(f"loss {name!r} of one margin depends on the other margins; write it elementwise")
    slope = derivative(function)
    return Loss(name, function, slope, derivative(slope), curvature_bound, convex)
