"""What does discrete training do to dW? The recursion that a V x d head follows in PyTorch, on T x d numbers.

Rows of dW whose token occurs in no response have zero gradient and, without weight decay, never move; with decay they
move but enter no margin. So the recursion on the T response rows is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from margincast.errors import StatedFailure
from margincast.frozen.engine.state import Space
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss, get_loss
from margincast.recipe.optimizer import Rule, Slots


def simulate(
    space: Space,
    optimizer: Rule,
    batches: Iterable[Batch],
    *,
    unembedding: Tensor,
    loss: Loss | str = "sigmoid",
    factor: Callable[[int], float] = lambda done: 1.0,
    max_grad_norm: float | None = None,
) -> Iterator[Tensor]:
    """Yield the state after every step: dW, (T, hidden), when `space` is a `TokenSpace`; computes in its dtype.

    unembedding: like the state, W0's rows; factor: schedule of the learning rate; max_grad_norm: clipping as
    `torch.nn.utils.clip_grad_norm_` does it, None or 0 for none.

    Raises `StatedFailure` when the state stops being finite, `InputError` when features that are not finite made it so.
    """
    loss = get_loss(loss, without_reference=True)
    state = space.zeros()
    slots: Slots = {}
    for done, batch in enumerate(batches):
        rate = optimizer.learning_rate * factor(done)
        state = take_step(
            space, optimizer, batch, state, slots,
            number=done + 1, rate=rate, unembedding=unembedding, loss=loss, max_grad_norm=max_grad_norm,
        )  # fmt: skip
        yield state


def take_step(
    space: Space,
    optimizer: Rule,
    batch: Batch,
    state: Tensor,
    slots: Slots,
    *,
    number: int,
    rate: float,
    unembedding: Tensor,
    loss: Loss,
    max_grad_norm: float | None,
) -> Tensor:
    """The state after step `number`, from 1, of the run of `simulate`, at the scheduled `rate`. Updates `slots`.

    Raises what `simulate` raises.
    """
    # Without a reference margins are those of W0 + dW, not of dW alone (SimPO).
    gradient = space.gradient(unembedding + state if loss.reference_free else state, loss, batch)
    if max_grad_norm:
        gradient = gradient * clip_factor(space.norm(gradient), max_grad_norm)
    state = state + optimizer.update(gradient, unembedding + state, slots, number, rate)
    if not bool(state.isfinite().all()):
        space.check()  # a feature that is not finite shows here, in the first step that meets it
        raise StatedFailure(f"the simulated run diverged at step {number}; lower learning_rate")
    return state


def clip_factor(norm: Tensor, max_grad_norm: float) -> Tensor:
    """What a gradient of length `norm` is multiplied by, as `torch.nn.utils.clip_grad_norm_` does it."""
    return (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
