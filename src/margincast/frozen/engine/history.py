"""How hard did each pair push at each step? The run of `simulate`, with the coefficients of every step kept.

Step k moves along the gradient G_k = sum_i c_i(k) delta_i g_i^T, with c_i(k) = beta w_i f'(r_i), times the clipping
factor. Adam divides it by sqrt(v_k) / c2_k + eps; once the run is known, that divisor is a fixed (T, hidden) matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import clip_factor, simulate
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss
from margincast.recipe.optimizer import Optimizer, Slots


@dataclass(frozen=True)
class Push:
    """One step. rows: (batch,) training pairs;  coefficients: (batch,) float64, their c_i;  rate: the learning rate

    divisor: (T, hidden), sqrt(v_k) / c2_k + eps, for Adam; None for an optimizer that divides by nothing
    """

    rows: Tensor
    coefficients: Tensor
    rate: float
    divisor: Tensor | None


def record_run(
    train: TokenSpace,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    *,
    unembedding: Tensor,
    loss: Loss,
    factor: Callable[[int], float],
    max_grad_norm: float | None,
) -> tuple[Push, ...]:
    """Every step of the run that `simulate` carries out with these arguments, in the arithmetic of float64.

    Raises what `simulate` raises.
    """
    space, watched = _Recorded(train), _Watched(optimizer)
    start = unembedding.to(train.features.device).double()
    run = simulate(
        space, watched, batches, unembedding=start, loss=loss, factor=factor, max_grad_norm=max_grad_norm
    )  # fmt: skip
    pushes = []
    for _ in run:
        clip = clip_factor(space.length, max_grad_norm) if max_grad_norm else 1.0
        pushes.append(Push(space.rows, clip * space.coefficients, watched.rate, watched.divisor))
    return tuple(pushes)


@dataclass
class _Recorded:
    """A space that keeps the coefficients and the length of its last gradient."""

    train: TokenSpace
    rows: Tensor = field(init=False)
    coefficients: Tensor = field(init=False)
    length: Tensor = field(init=False)

    def check(self) -> None:
        self.train.check()

    def zeros(self) -> Tensor:
        return self.train.zeros().double()

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        space, margins = self.train, state.new_empty(len(batch.rows))
        gradient = space.gradient(state, loss, batch, margins)
        # From the margins that the gradient was made of, so that dW is their sum even at the kink of a loss.
        rows, weights = batch.rows.to(state.device), batch.weights.to(state.device)
        self.rows, self.coefficients = rows, space.beta * weights * loss.slope(margins)
        return gradient

    def norm(self, gradient: Tensor) -> Tensor:
        self.length = self.train.norm(gradient)
        return self.length


@dataclass
class _Watched:
    """An optimizer that keeps the learning rate and the divisor of its last step."""

    optimizer: Optimizer
    rate: float = 0.0
    divisor: Tensor | None = None

    @property
    def learning_rate(self) -> float:
        return self.optimizer.learning_rate

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        change = self.optimizer.update(gradient, weights, slots, step, learning_rate)
        self.rate = learning_rate
        if self.optimizer.averaged is not None:
            self.divisor = self.optimizer.divisor(slots, step)
        return change
