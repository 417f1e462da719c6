"""How much of the flow did each pair drive? Its coefficient a_i(t), integrated beside dW.

    tau dW/dt = sum_i (da_i/dt) delta_i g_i^T,   tau da_i/dt = -(beta/N) f'(r_i)          (Eq. 6-7)

The steps of `integrate`, implicit within the leading directions P, taken by the pairs: with s = da/dt and ds/da = -D K,

    a' = a + h s - h D X,   X_i = delta_i^T (dW' - dW) P P^T g_i,   [I + h J] (dW' - dW) P = h sum_i s_i delta_i g_i^T P

so that dW' - dW = sum_i (a'_i - a_i) delta_i g_i^T holds in every step, and margins are sums over pairs to rounding.
An evaluation of s costs two passes over the features where one of dW alone costs one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.integrate import follow
from margincast.frozen.flow.stiff import RANK, Stiff
from margincast.recipe.loss import Loss


@dataclass(frozen=True)
class DrivenFlow:
    """The flow at `times`, t >= 0, as sums over pairs.

    coefficients: (times, N), a;  states: (times, T, hidden), sum_i a_i delta_i g_i^T; both float64, where the pairs are
    error: (times,), on the CPU: where the loss is convex, a bound on the states' distance from the flow, as in
    `states.Flow`
    """

    times: tuple[float, ...]
    coefficients: Tensor
    states: Tensor
    error: Tensor


def driven_flow(
    space: TokenSpace, times: Sequence[float], loss: Loss, tau: float = 1.0, start: Tensor | None = None
) -> DrivenFlow:
    """The flow from dW = 0 at each of the ascending `times`, t >= 0.

    start: W0's rows, (T, hidden), for a loss without a reference

    Raises `InputError` for features that are not finite, `StatedFailure` when the integrator gives up.
    """
    problem = _Driven(space, loss, tau, start)
    coefficients = space.features.new_zeros(len(times), len(space), dtype=torch.float64)
    states = torch.stack([problem.stiff.zeros()] * len(times))
    error = torch.zeros(len(times), dtype=torch.float64)
    first = sum(time == 0.0 for time in times)
    if times[first:]:
        followed, error[first:], _ = follow(problem, times[first:])
        coefficients[first:] = followed[:, problem.numbers :] / problem.length
        for k, both in enumerate(followed, start=first):
            states[k] = space.pull(coefficients[k])
            error[k] += float((states[k] - both[: problem.numbers].view(problem.shape)).norm())
    return DrivenFlow(tuple(times), coefficients, states, error)


class _Driven:
    """dW and a in one vector; a times the features' usual length, so that errors of both count alike."""

    def __init__(self, space: TokenSpace, loss: Loss, tau: float, start: Tensor | None) -> None:
        self.space, self.loss, self.tau = space, loss, tau
        self.stiff = Stiff(space, loss, tau, RANK, start)
        self.shape = space.zeros().shape
        self.numbers = self.shape.numel()
        self.length = float(space.lengths().square().mean().sqrt()) or 1.0

    def zeros(self) -> Tensor:
        return self.space.features.new_zeros(self.numbers + len(self.space), dtype=torch.float64)

    def velocity(self, state: Tensor) -> Tensor:
        batch, margins = self.stiff.batch, state.new_empty(len(self.space))
        here = self.stiff.start + state[: self.numbers].view(self.shape)
        gradient = self.space.gradient(here, self.loss, batch, margins)
        pushes = self.space.beta * batch.weights * self.loss.slope(margins)
        return torch.cat([gradient.flatten(), self.length * pushes]) / -self.tau

    def implicit(self, state: Tensor) -> Callable[[Tensor, float], Tensor]:
        solver = self.stiff.implicit(state[: self.numbers].view(self.shape))
        within = self.stiff.within

        def both(velocity: Tensor, h: float) -> Tensor:
            inside = velocity[: self.numbers].view(self.shape) @ solver.basis
            held = solver.curvature * within.moved(solver.within(inside, h)) * (-h / within.beta)
            change = h * velocity
            change[: self.numbers] += self._pull(held).flatten()
            change[self.numbers :] += self.length * held
            return change

        return both

    def _pull(self, coefficients: Tensor) -> Tensor:
        space = self.space
        if space.features.device.type != "cpu":
            return space.pull(coefficients)
        from margincast.frozen.engine.fused import fused_pull, plan_visits

        visits = plan_visits(self.stiff.batch.rows, space.chosen, space.rejected)
        return fused_pull(space.features, visits, coefficients, space.tokens)
