"""What does gradient flow, the limit of small learning rates, do to the frozen-backbone margins? (Eq. 6-7)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.integrate import RTOL, clock_of, follow
from margincast.frozen.flow.stiff import RANK, Stiff
from margincast.recipe.losses import Loss, get_loss


@dataclass(frozen=True)
class Flow:
    """The flow at `times`, with what it cost and how wrong it can be.

    times: (times,);  states: (times, T, hidden), float64
    error: (times,) sum of the estimated local errors of dW so far, in the Frobenius norm. The flow of a convex loss
        moves no two trajectories apart, so there this bounds the global error as far as the estimates hold.
    passes: how often the features were read, the search for leading directions included;  steps: accepted steps
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


def gradient_flow(
    space: TokenSpace,
    times: Sequence[float],
    loss: Loss | str = "sigmoid",
    *,
    tau: float = 1.0,
    start: Tensor | None = None,
    rtol: float = RTOL,
    rank: int = RANK,
) -> Flow:
    """States dW at `times` of the flow tau dW/dt = (beta/N) sum_i -f'(r_i) delta_i g_i^T, from dW = 0.

    times: strictly ascending, t >= 0, in units of learning_rate * steps when tau = 1
    start: W0's rows, (T, hidden), for a loss without a reference, whose margins are those of W0 + dW
    rtol: local error of a step relative to the length of dW;  rank: leading directions that are treated implicitly

    Raises `InputError` for times, pairs or features that cannot be used, and for a loss without a reference where
    there is no `start`; `StatedFailure` when the steps become too small.
    """
    loss = get_loss(loss, without_reference=start is not None)
    clock = clock_of(times)
    problem = Stiff(space, loss, tau, rank, start if loss.reference_free else None)
    states, errors, path = follow(problem, clock, rtol)
    return Flow(tuple(clock), states, errors, problem.passes, sum(map(len, path)))
