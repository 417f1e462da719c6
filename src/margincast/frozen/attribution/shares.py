"""What did each training pair add to dW? One vector per pair and response token.

dW = kappa W0 + sum_i (e_w(i) u_i^T - e_l(i) v_i^T), where weight decay alone makes kappa differ from 0.

SGD, momentum, gradient descent, flow: u_i = v_i = a_i g_i. The step is linear in the gradients and treats all entries
alike, so the optimizer's own rule, applied to the coefficients c_i(k) in place of the gradient, gives a_i; applied to
the coefficient of W0 as well, it gives kappa.

Adam, AdamW: with the run's divisors D_k fixed, dW(S) is linear in the gradients,

    dW(S) = kappa W0 - sum_k Q_k o G_k,   R_k = prod_{u > k} (1 - rate_u decay),   kappa = R_0 - 1
    Z_k = rate_k R_k / (c1_k D_k) + beta1 Z_{k+1},   Q_k = (1 - beta1) Z_k

so u_i = -g_i o sum_k c_i(k) Q_k[w(i)], v_i likewise at l(i).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.history import Push
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.optimizer import Optimizer, Slots

# In which sense contributions are exact: of optimizers that add up gradients, and of Adam.
EXACT_SUMS = "exact: margins are these sums at every step of the run"
GIVEN_PRECONDITIONER = "exact as a sum, given the run's preconditioner; not what leaving the pair out would do"


@dataclass(frozen=True)
class Moves:
    """What some pairs added: to the row of the chosen token, from that of the rejected. (rows, hidden) float64 each."""

    chosen: Tensor
    rejected: Tensor


class Shares(Protocol):
    """The part of every pair in dW, without holding N x hidden numbers."""

    @property
    def exact(self) -> str:
        """In which sense the parts are exact."""
        ...

    def active(self) -> Tensor:
        """Pairs that took part in some step, ascending."""
        ...

    def moves(self, train: TokenSpace, rows: Tensor) -> Moves: ...


@dataclass(frozen=True)
class Coefficients:
    """values: (N,) float64, a_i of dW = kappa W0 + sum_i a_i delta_i g_i^T."""

    values: Tensor
    exact: str = EXACT_SUMS

    def active(self) -> Tensor:
        return self.values.nonzero()[:, 0]

    def moves(self, train: TokenSpace, rows: Tensor) -> Moves:
        move = self.values[rows, None] * train.features[rows].double()
        return Moves(move, move)


@dataclass(frozen=True)
class Preconditioned:
    """Adam's. Entry e says that pair rows[e] had coefficient values[e] in step steps[e]; sorted by pair.

    rows, steps: (entries,);  values: (entries,) float64;  metric: (S, T, hidden) float64, Q_k
    """

    rows: Tensor
    steps: Tensor
    values: Tensor
    metric: Tensor
    exact: str = GIVEN_PRECONDITIONER

    def active(self) -> Tensor:
        return self.rows[self.rows.diff(prepend=self.rows.new_tensor([-1])) > 0]

    def moves(self, train: TokenSpace, rows: Tensor) -> Moves:
        features = train.features[rows].double()
        weights = features.new_zeros(len(rows), len(self.metric))
        first, last = torch.searchsorted(self.rows, rows), torch.searchsorted(self.rows, rows, right=True)
        entries = _ranges(first, last)
        places = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), last - first)
        weights[places, self.steps[entries]] = self.values[entries]
        return Moves(*(self._side(features, weights, side[rows]) for side in (train.chosen, train.rejected)))

    def _side(self, features: Tensor, weights: Tensor, tokens: Tensor) -> Tensor:
        out = torch.empty_like(features)
        for token in torch.unique(tokens).tolist():
            mine = (tokens == token).nonzero().squeeze(1)
            out[mine] = -features[mine] * (weights[mine] @ self.metric[:, token])
        return out


def check_attributable(optimizer: Optimizer) -> None:
    """Raises `InputError` for an optimizer that neither adds gradients nor divides their running mean."""
    if not (optimizer.linear or optimizer.flow or optimizer.averaged is not None):
        raise InputError(
            f"what a training pair adds under {type(optimizer).__name__} is not known: it neither adds up gradients "
            "(linear, flow) nor divides a running mean of them (averaged)"
        )


def shares_of(
    pushes: Sequence[Push], optimizer: Optimizer, train: TokenSpace, at: Sequence[int]
) -> Iterator[tuple[int, Shares, float]]:
    """For every step number in `at`, ascending: it, what each pair had added by then, and kappa.

    Raises `InputError` for an optimizer of which that is not known.
    """
    check_attributable(optimizer)
    if optimizer.averaged is not None:
        for step in at:
            yield step, *_preconditioned(pushes[:step], optimizer, optimizer.averaged, train)
        return
    pairs = len(train)
    unit = train.features.new_zeros(pairs + 1, dtype=torch.float64)
    unit[pairs] = 1.0  # W0 in these coordinates
    total, slots = torch.zeros_like(unit), Slots()
    if 0 in at:
        yield 0, Coefficients(total[:pairs].clone()), 0.0
    for step, push in enumerate(pushes, start=1):
        gradient = torch.zeros_like(unit).index_add_(0, push.rows, push.coefficients)
        total = total + optimizer.update(gradient, unit + total, slots, step, push.rate)
        if step in at:
            yield step, Coefficients(total[:pairs].clone()), float(total[pairs])


def _preconditioned(
    pushes: Sequence[Push], optimizer: Optimizer, beta1: float, train: TokenSpace
) -> tuple[Preconditioned, float]:
    like, whole = train.features.new_zeros(0, dtype=torch.float64), train.chosen.new_zeros(0)
    remaining, carried, metric = 1.0, like.new_zeros(()), []
    for step, push in zip(range(len(pushes), 0, -1), reversed(pushes), strict=True):
        assert push.divisor is not None
        carried = push.rate * remaining / (1 - beta1**step) / push.divisor + beta1 * carried
        metric.append((1 - beta1) * carried)
        remaining *= 1 - push.rate * optimizer.decay
    rows = torch.cat([whole, *(push.rows for push in pushes)])
    steps = torch.repeat_interleave(whole.new_tensor([len(push.rows) for push in pushes]))
    values = torch.cat([like, *(push.coefficients for push in pushes)])
    order = torch.argsort(rows, stable=True)
    none = like.new_zeros(0, train.tokens, train.features.shape[1])
    stacked = torch.stack(metric[::-1]) if metric else none
    return Preconditioned(rows[order], steps[order], values[order], stacked), remaining - 1.0


def _ranges(first: Tensor, last: Tensor) -> Tensor:
    """first[0] .. last[0] - 1, first[1] .. last[1] - 1, ... in one vector."""
    counts = last - first
    starts = torch.repeat_interleave(first - (counts.cumsum(0) - counts), counts)
    return torch.arange(len(starts), device=starts.device) + starts
