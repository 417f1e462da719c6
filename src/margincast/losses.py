"""Which scalar losses f(r) of the margin can be trained, and their value and slope? (Eq. 17)

Every loss is a function of the margin r alone, elementwise on tensors of any shape. The dynamics need only -f'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margincast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A member f of the family: `value(r)` and `slope(r)` = f'(r), named as TRL names it."""

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _softplus(x: Tensor) -> Tensor:
    from torch.nn.functional import softplus

    return softplus(x, threshold=40.0)


# DPO: f(r) = log(1 + exp(-r)), -f'(r) = sigma(-r).
sigmoid = Loss("sigmoid", value=lambda r: _softplus(-r), slope=lambda r: -(-r).sigmoid())

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (sigmoid,)}


def get_loss(name: str) -> Loss:
    """The loss called `name`. Raises `InputError` for a name margincast does not have."""
    if name not in LOSSES:
        raise InputError(f"loss_type {name!r} is not known; use one of: {', '.join(LOSSES)}")
    return LOSSES[name]
