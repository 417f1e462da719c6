"""What does gradient flow, the limit of small learning rates, do to the frozen-backbone margins? (Eq. 6-7)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from margincast.errors import InputError, StatedFailure
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import full_batch
from margincast.recipe.losses import Loss, get_loss, sigmoid


def gradient_flow(
    space: TokenSpace,
    times: Sequence[float],
    loss: Loss = sigmoid,
    tau: float = 1.0,
    rtol: float = 1e-8,
    atol: float = 1e-12,
    unembedding: Tensor | None = None,
) -> Tensor:
    """States dW at `times` of the flow tau dW/dt = (beta/N) sum_i -f'(r_i) delta_i g_i^T, from dW = 0.

    times: strictly ascending, t >= 0, in units of learning_rate * steps when tau = 1
    Returns (times, T, hidden) in the features' dtype; the integration runs in float64. `rtol` and `atol` bound the
    local error of the state. Where the loss is convex (`Loss.convex`) its flow never moves two trajectories apart, and
    the global error is at most the sum of the local ones. unembedding: W0's rows, (T, hidden), for a loss without a
    reference, whose margins are those of W0 + dW.

    Raises `InputError` for times that are negative, infinite or not ascending, `StatedFailure` when the integrator
    gives up.
    """
    loss = get_loss(loss, without_reference=unembedding is not None)
    start = unembedding.double() if unembedding is not None and loss.reference_free else 0.0
    clock = np.asarray(times, dtype=np.float64)
    ascending = clock.ndim == 1 and len(clock) > 0 and clock[0] >= 0 and bool((np.diff(clock) > 0).all())
    if not (ascending and np.isfinite(clock[-1])):
        raise InputError("times of the flow must be finite, strictly ascending and not negative")
    shape = (space.tokens, space.features.shape[1])
    if clock[-1] == 0.0:
        return space.features.new_zeros(len(clock), *shape, dtype=space.dtype)

    everything = next(full_batch(len(space), 1))

    def velocity(_: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        gradient = space.gradient(start + torch.from_numpy(flat).view(shape), loss, everything)
        return (-gradient / tau).flatten().numpy()  # Eq. 6, with the 1/N that Eq. 7 drops

    solution = solve_ivp(
        velocity, (0.0, clock[-1]), np.zeros(shape[0] * shape[1]), method="DOP853", t_eval=clock, rtol=rtol, atol=atol
    )
    if not solution.success:
        raise StatedFailure(f"gradient flow stopped at t = {solution.t[-1]:g}: {solution.message}")
    return torch.from_numpy(solution.y.T.copy()).view(len(clock), *shape).to(space.dtype)
