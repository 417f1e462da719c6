"""How is the flow followed to long times, where explicit steps are held back by stability?

Embeddings share a large component, so the Hessian of the loss has a few eigenvalues thousands of times the median; an
explicit method takes steps of the size of the largest one's inverse although nothing moves there any more. Here the
steps are implicit in the span P of the leading directions of the features and explicit in the rest (a W-method):

    y' = y + h [I + h P J P^T]^-1 v(y),   v: velocity,  -J: its derivative at the start of the step within P

extrapolated to high order over 1, 2, 3, ... substeps (Deuflhard 1985; Hairer and Wanner, Solving ODEs II, IV.9). The
order holds for any J, so that P needs no accuracy and J is a matrix of the few coordinates in P. Every evaluation of
the velocity is one pass over the features, in float64 arithmetic whatever they are stored in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from margincast.errors import InputError, StatedFailure
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import full_batch
from margincast.recipe.losses import Loss, get_loss, sigmoid

MAX_ORDER = 9
SUBSPACE_PASSES = 3
# Coordinates of the implicit part, T x rank: its eigenvectors are found anew at every step.
COORDINATES = 256


@dataclass(frozen=True)
class Flow:
    """The flow at `times`, with what it cost and how wrong it can be.

    times: (times,);  states: (times, T, hidden), float64
    error: (times,) sum of the estimated local errors of dW so far, in the Frobenius norm. The flow of a convex loss
        moves no two trajectories apart, so this bounds the global error as far as the estimates hold.
    passes: how often the features were read, the search for P included;  steps: accepted steps
    """

    times: tuple[float, ...]
    states: Tensor
    error: Tensor
    passes: int
    steps: int

    def margin_error(self, space: TokenSpace) -> Tensor:
        """Bounds on the margins' errors, (times, pairs)."""
        return margin_error(self.error, space)


def margin_error(error: Tensor, space: TokenSpace) -> Tensor:
    """Bounds on the errors of margins, (times, pairs), for states wrong by at most `error`, (times,).

    beta |delta_i| |g_i| error, with |delta_i|^2 = 2.
    """
    return error[:, None] * (space.beta * math.sqrt(2.0)) * space.lengths()


def long_flow(
    space: TokenSpace,
    times: Sequence[float],
    loss: Loss = sigmoid,
    tau: float = 1.0,
    rtol: float = 1e-6,
    atol: float = 1e-12,
    rank: int = 128,
) -> Flow:
    """States dW at `times`, strictly ascending and positive, of the flow of `flow.gradient_flow`, from dW = 0.

    rtol, atol: bounds on the local error of a step, relative to the length of dW and absolute
    rank: leading directions of the features that are treated implicitly, at most `COORDINATES` / T

    Raises `InputError` for a loss that is not convex, for such times, pairs or features as cannot be used;
    `StatedFailure` when the steps become too small.
    """
    loss = get_loss(loss)  # refuses one without a reference: margins start at 0 here
    if not loss.convex:
        raise InputError(f"the loss {loss.name!r} is not convex, so that its flow has no such error bound")
    clock = np.asarray(times, dtype=np.float64)
    if clock.ndim != 1 or not len(clock) or not (np.diff(clock, prepend=0.0) > 0).all() or not np.isfinite(clock[-1]):
        raise InputError("times of the flow must be finite, strictly ascending and positive")
    problem = Stiff(space, loss, tau, rank)
    states, errors, steps = follow(problem, clock.tolist(), rtol, atol)
    return Flow(tuple(clock), states, errors, problem.passes, steps)


def follow(problem: Problem, clock: Sequence[float], rtol: float, atol: float) -> tuple[Tensor, Tensor, int]:
    """States at the times of `clock` from a state of zeros, the sums of local errors until then, and accepted steps."""
    state = problem.zeros()
    velocity = problem.velocity(state)
    now, error, target, steps = 0.0, 0.0, 4, 0
    step = float(clock[0])
    states, errors = [], []
    for time in clock:
        while now < time:
            last = now + step * (1 + 1e-9) >= time
            h = time - now if last else step
            attempt = _extrapolate(problem, state, velocity, h, rtol, atol, target)
            if attempt.step < 1e-12 * max(now, float(clock[0])):
                raise StatedFailure(f"gradient flow stopped at t = {now:g}: the steps became too small")
            # A step that was cut short to end on a requested time says little about the next one.
            step = attempt.step if not (last and attempt.accepted) else max(step, attempt.step)
            target = attempt.order
            if attempt.accepted:
                now, state, error, steps = (time if last else now + h), attempt.state, error + attempt.error, steps + 1
                velocity = problem.velocity(state)
        states.append(state)
        errors.append(error)
    return torch.stack(states), torch.tensor(errors, dtype=torch.float64), steps


class Problem(Protocol):
    """A velocity, and solves near a state: what `follow` needs to know of a flow."""

    def zeros(self) -> Tensor: ...

    def velocity(self, state: Tensor) -> Tensor: ...

    def implicit(self, state: Tensor) -> Callable[[Tensor, float], Tensor]:
        """(velocity, h) -> h [I + h J]^-1 velocity."""
        ...


@dataclass(frozen=True)
class _Attempt:
    state: Tensor
    error: float
    accepted: bool
    step: float  # proposed for the next attempt
    order: int


def _extrapolate(
    problem: Problem, state: Tensor, velocity: Tensor, h: float, rtol: float, atol: float, target: int
) -> _Attempt:
    """One step of length h; rows of the extrapolation table are added until the error is small enough."""
    solve = problem.implicit(state)
    rows: list[list[Tensor]] = []
    best, proposal, order, error = np.inf, h, target, np.inf
    for j in range(1, min(target + 1, MAX_ORDER) + 1):
        y = state + solve(velocity, h / j)
        for _ in range(j - 1):
            y = y + solve(problem.velocity(y), h / j)
        row = [y]
        for k, above in enumerate(rows[-1] if rows else [], start=1):  # Aitken and Neville, in powers of h
            row.append(row[-1] + (row[-1] - above) * (j - k) / k)
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
            if order == j < MAX_ORDER:  # the last row paid most, so the next may pay more, at a longer step
                order, proposal = j + 1, proposal * _cost(j + 1) / _cost(j)
            return _Attempt(row[-1], error, True, proposal, order)
    return _Attempt(state, error, False, min(proposal, h / 2), order)


def _cost(order: int) -> int:
    """Passes of a step whose table has `order` rows."""
    return order * (order - 1) // 2 + 1


class Stiff:
    """The velocity, and its derivative within the leading directions; counts the passes over the features."""

    def __init__(self, space: TokenSpace, loss: Loss, tau: float, rank: int, start: Tensor | None = None) -> None:
        """start: W0's rows, (T, hidden), for a loss without a reference"""
        space.check()
        rank = max(1, min(rank, COORDINATES // space.tokens, *space.features.shape))
        self.space, self.loss, self.tau, self.passes = space, loss, tau, 0
        self.start = 0.0 if start is None else start.double()
        self.batch = next(full_batch(len(space), 1))
        self.basis, coordinates = self._leading(rank)
        self.within = TokenSpace(coordinates, space.chosen, space.rejected, space.beta, space.tokens)
        pairs = torch.stack([space.chosen, space.rejected], dim=1)
        self.directions, self.direction = torch.unique(pairs.sort(dim=1).values, dim=0, return_inverse=True)
        self.sign = torch.where(space.chosen <= space.rejected, 1.0, -1.0).double() * (space.chosen != space.rejected)

    def zeros(self) -> Tensor:
        return self.space.zeros().double()

    def velocity(self, state: Tensor) -> Tensor:
        """-gradient / tau, (T, hidden): the right side of Eq. 6."""
        self.passes += 1
        return -self.space.gradient(self.start + state, self.loss, self.batch) / self.tau

    def implicit(self, state: Tensor) -> Solver:
        """Solves with I + h J at `state`; reads the coordinates, (pairs, rank), in place of the features."""
        space, rank = self.space, self.basis.shape[1]
        # The part of the margins outside P is small where P holds the leading directions; J need not be exact.
        margins = self.within.margins((self.start + state) @ self.basis)
        curvature = self.loss.curvature(margins).clamp(min=0.0) * (space.beta**2 / len(space) / self.tau)
        J = state.new_zeros(space.tokens, rank, space.tokens, rank)
        for number, (a, b) in enumerate(self.directions.tolist()):
            if a == b:
                continue
            mine = self.direction == number
            part = self.within.features[mine]
            block = part.T @ (curvature[mine, None] * part)  # of delta delta^T (x) g g^T
            J[a, :, a] += block
            J[b, :, b] += block
            J[a, :, b] -= block
            J[b, :, a] -= block
        size = space.tokens * rank
        values, vectors = torch.linalg.eigh(J.reshape(size, size))
        return Solver(self.basis, curvature, values.clamp(min=0.0), vectors)

    def _leading(self, rank: int) -> tuple[Tensor, Tensor]:
        """Orthonormal P, (hidden, rank), near the leading right singular vectors, and G P, by subspace iteration."""
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(self.space.features.shape[1], rank, generator=generator, dtype=torch.float64)
        for _ in range(SUBSPACE_PASSES):
            basis = torch.linalg.qr(self._products(basis)[1]).Q
        return basis, self._products(basis)[0]

    def _products(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """G P and G^T G P from one pass over the features."""
        self.passes += 1
        projected = basis.new_empty(len(self.space), basis.shape[1])
        gram = torch.zeros_like(basis)
        for part in self.space.blocks():
            rows = self.space.features[part].double()
            projected[part] = rows @ basis
            gram += rows.T @ projected[part]
        return projected, gram


@dataclass(frozen=True)
class Solver:
    """basis: (hidden, rank), P;  curvature: (N,), beta^2 f'' / (N tau);  values, vectors: of J within P"""

    basis: Tensor
    curvature: Tensor
    values: Tensor
    vectors: Tensor

    def __call__(self, velocity: Tensor, h: float) -> Tensor:
        """h [I + h J]^-1 velocity, (T, hidden)."""
        inside = velocity @ self.basis
        return h * velocity + (self.within(inside, h) - h * inside) @ self.basis.T

    def within(self, inside: Tensor, h: float) -> Tensor:
        """h [I + h J]^-1 inside, (T, rank), for what lies in P."""
        modes = self.vectors.T @ inside.flatten()
        return (self.vectors @ (h * modes / (1 + h * self.values))).view_as(inside)
