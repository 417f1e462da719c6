"""How is a flow integrated? By one method with a stated local error, for any state and velocity.

Embeddings share a large component, so the Hessian of the loss has a few eigenvalues thousands of times the median; an
explicit method takes steps of the size of the largest one's inverse although nothing moves there any more. Here steps
are implicit as far as the problem says how (a W-method),

    y' = y + h [I + h J]^-1 v(y),   v: velocity,  -J: about its derivative at the start of the step

extrapolated to high order over 1, 2, 3, ... substeps (Deuflhard 1985; Hairer and Wanner, Solving ODEs II, IV.9). The
order holds for any J, that of an explicit method (J = 0) included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from margincast.errors import InputError, StatedFailure

# Local error of a step: relative to the length of the state, and absolute.
RTOL, ATOL = 1e-9, 1e-12
MAX_ORDER = 9

Solve = Callable[[Tensor, float], Tensor]


def clock_of(times: Sequence[float]) -> list[float]:
    """`times` as `follow` takes them. Raises `InputError` unless they are finite, t >= 0 and ascend."""
    clock = np.asarray(times, dtype=np.float64)
    ascending = clock.ndim == 1 and len(clock) > 0 and clock[0] >= 0 and bool((np.diff(clock) > 0).all())
    if not (ascending and np.isfinite(clock[-1])):
        raise InputError("times of the flow must be finite, strictly ascending and not negative")
    return [float(time) for time in clock]


class Field(Protocol):
    """A velocity, and solves near a state: what a step of the flow needs to know of it."""

    def velocity(self, state: Tensor) -> Tensor: ...

    def implicit(self, state: Tensor) -> Callable[[Tensor, float], Tensor]:
        """(velocity, h) -> h [I + h J]^-1 velocity."""
        ...


class Problem(Field, Protocol):
    """The same with the state that it begins at."""

    def zeros(self) -> Tensor: ...


@dataclass(frozen=True)
class Stride:
    """An accepted step: its length in time, and how many rows its extrapolation table had."""

    h: float
    rows: int


def follow(
    problem: Problem, clock: Sequence[float], rtol: float = RTOL, atol: float = ATOL, order: int = MAX_ORDER
) -> tuple[Tensor, Tensor, list[tuple[Stride, ...]]]:
    """States at the times of `clock` from a state of zeros, the sums of local errors until then, and for every time the
    accepted steps that led there from the one before.

    clock: of `clock_of`;  order: the highest of a step, which holds twice as many states

    Raises `StatedFailure` when the steps become too small.
    """
    state = problem.zeros()
    velocity = problem.velocity(state)
    now, error, target = 0.0, 0.0, 4
    step = first = next((time for time in clock if time > 0.0), 0.0)
    states, errors, path = [], [], []
    for time in clock:
        strides = []
        while now < time:
            last = now + step * (1 + 1e-9) >= time
            h = time - now if last else step
            attempt = _extrapolate(problem, state, velocity, h, (rtol, atol), (target, order))
            if attempt.step < 1e-12 * max(now, first):
                raise StatedFailure(f"gradient flow stopped at t = {now:g}: the steps became too small")
            # A step that was cut short to end on a requested time says little about the next one.
            step = attempt.step if not (last and attempt.accepted) else max(step, attempt.step)
            target = attempt.order
            if attempt.accepted:
                now, state, error = (time if last else now + h), attempt.state, error + attempt.error
                velocity = problem.velocity(state)
                strides.append(Stride(h, attempt.rows))
        states.append(state)
        errors.append(error)
        path.append(tuple(strides))
    return torch.stack(states), torch.tensor(errors, dtype=torch.float64), path


def retrace(problem: Field, state: Tensor, stride: Stride) -> Tensor:
    """The state after an accepted step of `follow` from `state`, once more and without choosing anything."""
    solve, velocity = problem.implicit(state), problem.velocity(state)
    row: list[Tensor] = []
    for j in range(1, stride.rows + 1):
        row = _row(problem, solve, (state, velocity), stride.h, j, row)
    return row[-1]


@dataclass(frozen=True)
class _Attempt:
    state: Tensor
    error: float
    accepted: bool
    step: float  # proposed for the next attempt
    order: int
    rows: int = 0  # of its table, where it is accepted


def _extrapolate(
    problem: Field, state: Tensor, velocity: Tensor, h: float, tolerance: tuple[float, float], orders: tuple[int, int]
) -> _Attempt:
    """One step of length h; rows of the extrapolation table are added until the error is small enough.

    tolerance: relative, absolute;  orders: the one that is aimed at, the highest
    """
    (rtol, atol), (target, most) = tolerance, orders
    solve = problem.implicit(state)
    rows: list[list[Tensor]] = []
    best, proposal, order, error = np.inf, h, target, np.inf
    for j in range(1, min(target + 1, most) + 1):
        row = _row(problem, solve, (state, velocity), h, j, rows[-1] if rows else [])
        rows.append(row)
        if j == 1:
            continue
        error = float((row[-1] - row[-2]).detach().norm())
        if not np.isfinite(error):
            return _Attempt(state, error, False, h / 10, target)
        allowed = atol + rtol * float(torch.maximum(row[-1].detach().norm(), state.detach().norm()))
        longest = h * min(5.0, max(0.1, 0.8 * (allowed / max(error, 1e-300)) ** (1 / j)))
        if _cost(j) / longest < best:
            best, proposal, order = _cost(j) / longest, longest, j
        if error <= allowed and j >= target - 1:
            if order == j < most:  # the last row paid most, so the next may pay more, at a longer step
                order, proposal = j + 1, proposal * _cost(j + 1) / _cost(j)
            return _Attempt(row[-1], error, True, proposal, order, j)
    return _Attempt(state, error, False, min(proposal, h / 2), order)


def _row(
    problem: Field, solve: Solve, start: tuple[Tensor, Tensor], h: float, j: int, above: Sequence[Tensor]
) -> list[Tensor]:
    """Row j of the table: j substeps, then what they and the row above extrapolate to. start: state and velocity"""
    state, velocity = start
    y = state + solve(velocity, h / j)
    for _ in range(j - 1):
        y = y + solve(problem.velocity(y), h / j)
    row = [y]
    for k, before in enumerate(above, start=1):  # Aitken and Neville, in powers of h
        row.append(row[-1] + (row[-1] - before) * (j - k) / k)
    return row


def _cost(order: int) -> int:
    """Passes of a step whose table has `order` rows."""
    return order * (order - 1) // 2 + 1
