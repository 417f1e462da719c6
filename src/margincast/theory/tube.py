"""How far can the true gradient flow be from a cheap approximation of it? (a certificate for any features)

The loss is convex in dW, so its flow never moves two trajectories apart. Hence for any path What(t) from 0

    |dW(t) - What(t)| <= int_0^t |What'(u) - F(What(u))| du,   F(W) = (beta/(N tau)) sum_i sigma(-r_i(W)) delta_i g_i^T,

and with it |r_j - rhat_j| <= beta |delta_j| |g_j| |dW - What| for every pair, trained on or not. The right side needs
no knowledge of the true trajectory. Signs of C play no part, so a large component shared by all features does no harm.

The path: on a step of length h the slopes are guessed to be linear in time, from s to s_end. Then What and every rhat_i
are quadratic in time, and the residual is (beta/(N tau)) sum_i rho_i(u) delta_i g_i^T, rho_i = guess - sigma(-rhat_i):
scalar functions with known bounds on their second derivatives, so what lies between samples is bounded, not sampled.
s_end comes from one implicit trapezoid step solved roughly; a poor solve widens the tube and cannot make it false.
Proof and cost: docs/theory/certificates.md. For the logistic loss only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.state import TokenSpace
from margincast.theory.envelopes import Bracket

_SIGMOID_SLOPE = 0.25  # max sigma'
_SIGMOID_CURVATURE = 1.0 / (6.0 * math.sqrt(3.0))  # max |sigma''|
_SAMPLES = 6  # where the residual is evaluated in a step: subintervals, each end included
_SHORTEST = 1e-7  # of the last time: a step this short is taken whatever the tube costs
_AT_REST = 1e-3  # margins that have come to rest still allow steps, as if they moved so much of themselves in all
_ROUNDING = 1e-12  # allowance for float64 rounding, relative to the largest velocity the state can have


@dataclass(frozen=True)
class Tube:
    """|dW(t) - states(t)| <= radius(t) (Frobenius norm) at each time.

    times: (times,);  states: (times, T, hidden);  radius: (times,);  steps: trapezoid steps taken
    """

    times: Tensor
    states: Tensor
    radius: Tensor
    steps: int

    def bracket(self, pairs: TokenSpace) -> Bracket:
        """Bracket of the margins of any pairs in the same token space."""
        wide = _float64(pairs)
        margins = torch.stack([wide.margins(state) for state in self.states])
        reach = wide.beta * math.sqrt(2.0) * wide.features.norm(dim=1) * self.radius[:, None]
        return Bracket(self.times, margins - reach, margins + reach)


def flow_tube(train: TokenSpace, times: Sequence[float], tau: float = 1.0, share: float = 0.05) -> Tube:
    """A tube around the gradient flow from dW = 0 that contains it at every time of `times`.

    times: ascending, >= 0
    share: steps are short enough that the half-width of the bracket of a pair of typical |g| grows at most this
        fraction as fast as the typical margin moves. It sets cost and tightness; the tube is true for any value.
    Raises `InputError` for times that do not ascend or a share that is not positive.
    """
    clock = torch.as_tensor(times, dtype=torch.float64)
    if clock.ndim != 1 or len(clock) == 0 or float(clock[0]) < 0.0 or bool((clock.diff() <= 0).any()):
        raise InputError("times of a tube must ascend strictly and not be negative")
    if share <= 0.0:
        raise InputError(f"share must be > 0, got {share}")
    flow = _Flow(_float64(train), tau)
    reach = flow.space.beta * math.sqrt(2.0) * float(flow.space.features.square().sum(1).mean().sqrt())
    last = float(clock[-1])
    state, radius, now, steps, h = flow.space.zeros(), 0.0, 0.0, 0, last
    states, radii = [], []
    for target in clock.tolist():
        while now < target:
            length = min(h, target - now)
            step = flow.step(state, length)
            allowed = share * max(step.growth, _AT_REST * step.size * length / last) + reach * flow.rounding(length)
            limit = allowed / (reach * step.residual) if reach * step.residual > 0.0 else math.inf  # >= 1: short enough
            if limit >= 1.0 or length <= _SHORTEST * last:
                state, radius, steps = step.state, radius + step.residual + flow.rounding(length), steps + 1
                now = target if length == target - now else now + length
            # The residual of a step falls with h^3, the growth with h.
            h = length * min(4.0, max(0.1, 0.9 * math.sqrt(min(limit, 100.0))))
        states.append(state)
        radii.append(radius)
    return Tube(clock, torch.stack(states), torch.tensor(radii, dtype=torch.float64), steps)


@dataclass(frozen=True)
class _Step:
    """state: What at the end; residual: bound on int |What' - F(What)|; size, growth: rms margin, rms change."""

    state: Tensor
    residual: float
    size: float
    growth: float


class _Flow:
    """The vector field F on the state, its derivative, and one certified step along it."""

    def __init__(self, space: TokenSpace, tau: float) -> None:
        self.space = space
        self.rate = space.beta / (len(space) * tau)
        g = space.features
        gram = g.T @ g if g.shape[0] >= g.shape[1] else g @ g.T
        # |sum_i w_i delta_i g_i^T| <= operator * |w|: the Schur product of the two Gram matrices, |delta_i|^2 = 2.
        self.operator = math.sqrt(2.0 * max(0.0, float(torch.linalg.eigvalsh(gram)[-1])) * (1.0 + _ROUNDING))

    def rounding(self, h: float) -> float:
        """What float64 may do to the state over a time h, generously: |F| <= rate operator sqrt N."""
        return _ROUNDING * h * self.rate * self.operator * math.sqrt(len(self.space))

    def step(self, state: Tensor, h: float) -> _Step:
        start = self.space.margins(state)
        s = torch.sigmoid(-start)
        velocity = self.rate * self.space.pull(s)
        s_end = torch.sigmoid(-self.space.margins(self._trapezoid(state, velocity, h)))
        velocity_end = self.rate * self.space.pull(s_end)
        a, b = self.space.moved(velocity), self.space.moved(velocity_end)  # rhat' at both ends

        norms = []
        for m in range(_SAMPLES + 1):
            u = m / _SAMPLES
            margins = start + h * (u * a + 0.5 * u**2 * (b - a))
            rho = s + u * (s_end - s) - torch.sigmoid(-margins)
            norms.append(self.rate * float(self.space.pull(rho).norm()))
        # Between samples: |rho''| = |d^2/du^2 sigma(-rhat)| <= max|sigma''| rhat'^2 + max sigma' |rhat''|, and the
        # error of linear interpolation integrates to length^3 |rho''| / 12.
        bend = _SIGMOID_CURVATURE * torch.maximum(a.square(), b.square()) + _SIGMOID_SLOPE * (b - a).abs() / h
        length = h / _SAMPLES
        sampled = length * (sum(norms) - 0.5 * (norms[0] + norms[-1]))  # a norm is convex: trapezoids are above it
        between = _SAMPLES * length**3 / 12.0 * self.rate * self.operator * float(bend.norm())
        size, growth = (float(x.square().mean().sqrt()) for x in (start, 0.5 * h * (a + b)))
        return _Step(state + 0.5 * h * (velocity + velocity_end), sampled + between, size, growth)

    def _trapezoid(self, state: Tensor, velocity: Tensor, h: float) -> Tensor:
        """About the solution of W = state + h/2 (velocity + F(W)), by two Newton steps with conjugate gradients."""
        target = state + 0.5 * h * velocity
        guess = state + h * velocity
        for _ in range(2):
            slopes = torch.sigmoid(-self.space.margins(guess))
            defect = target + 0.5 * h * self.rate * self.space.pull(slopes) - guess
            guess = guess + self._solve(slopes * (1.0 - slopes), 0.5 * h, defect)
        return guess

    def _solve(self, curvature: Tensor, half: float, right: Tensor) -> Tensor:
        """About (I - half * F')^-1 right: positive definite since F' = -(rate) sum_i curvature_i beta z_i z_i^T."""
        x, residual = torch.zeros_like(right), right
        direction, size = residual, float(residual.square().sum())
        enough = 1e-12 * size  # relative 1e-6 in norm; the tube pays for the rest
        for _ in range(60):
            if size <= enough or size == 0.0:
                break
            product = direction + half * self.rate * self.space.pull(curvature * self.space.moved(direction))
            alpha = size / float((direction * product).sum())
            x, residual = x + alpha * direction, residual - alpha * product
            previous, size = size, float(residual.square().sum())
            direction = residual + size / previous * direction
        return x


def _float64(space: TokenSpace) -> TokenSpace:
    return replace(space, features=space.features.double())
