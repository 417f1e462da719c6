"""What does discrete training do to dW? The recursion that a V x d head follows in PyTorch, on T x d numbers.

Rows of dW whose token occurs in no response have zero gradient and, without weight decay, never move; with decay they
move but enter no margin. So the recursion on the T response rows is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from margincast.dynamics.batches import Batch
from margincast.dynamics.optimizers import Optimizer, Slots
from margincast.dynamics.state import TokenSpace
from margincast.errors import StatedFailure
from margincast.losses import Loss, sigmoid


def simulate(
    space: TokenSpace,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    *,
    unembedding: Tensor,
    loss: Loss = sigmoid,
    factor: Callable[[int], float] = lambda done: 1.0,
    max_grad_norm: float | None = None,
) -> Iterator[Tensor]:
    """Yield dW, (T, hidden), after every step; computes in the dtype of `space.features`.

    unembedding: (T, hidden) rows of W0; factor: schedule of the learning rate; max_grad_norm: clipping as
    `torch.nn.utils.clip_grad_norm_` does it, None or 0 for none.

    Raises `StatedFailure` when the state stops being finite.
    """
    state = space.zeros()
    slots: Slots = {}
    for done, batch in enumerate(batches):
        rows = space.rows(batch.rows)
        weights = batch.weights.to(state)
        # Eq. 6 with the batch's weights for 1/N: the gradient of sum_i weight_i f(r_i) in W.
        gradient = space.beta * rows.pull(weights * loss.slope(rows.margins(state)))
        if max_grad_norm:
            gradient = gradient * (max_grad_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
        rate = optimizer.learning_rate * factor(done)
        state = state + optimizer.update(gradient, unembedding + state, slots, done + 1, rate)
        if not bool(state.isfinite().all()):
            raise StatedFailure(f"the simulated run diverged at step {done + 1}; lower learning_rate")
        yield state
