"""How does the component that all prompts share move? One shift of every response token, driven by the batch order.

Prompts of one data set share most of their gradient: for two response tokens all log-odds move together by a common
b(s), which has nothing to do with what the prompts say. Its gradient is the mean over the batch of -f'(r_i) delta_i,
the batch's label balance; training by AdamW moves every weight along it by the learning rate times a normalised step,

    b(s + 1) = b(s) + rate lr (1 + growth L(s)) m(s) / sqrt(v(s)),        L(s) the path length so far (`time`)

with m and v AdamW's running means of that one gradient. So b follows from the batch order, which is known before the
run. `rate` is how far one step moves the shared log-odds, the l1 norm of their gradient times the learning rate;
`growth` how fast that norm grows along the run. Both are constants of the model, not of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.dynamics.batches import Batch
from margincast.dynamics.optimizers import AdamW
from margincast.effective.time import UNIT
from margincast.losses import Loss


@dataclass(frozen=True)
class OffsetLaw:
    """rate: nats a token's shared logit moves in a step of learning rate `time.UNIT`;  growth: per path length."""

    rate: float
    growth: float


def offset_path(
    chosen: Tensor,
    rejected: Tensor,
    tokens: int,
    batches: Iterable[Batch],
    learning_rates: Sequence[float],
    optimizer: AdamW,
    loss: Loss,
    beta: float,
    law: OffsetLaw,
) -> Tensor:
    """Shared logit of every response token after every step, (steps + 1, tokens) float64, 0 first.

    chosen, rejected: (pairs,) token indices in [0, tokens) of the training pairs
    learning_rates: of each step, as scheduled

    The margin of a pair shifts by beta times the chosen token's shared logit less the rejected one's.
    """
    logits = torch.zeros(tokens, dtype=torch.float64)
    slots: dict[str, Tensor] = {}
    path, travelled = [logits], 0.0
    for step, (batch, learning_rate) in enumerate(zip(batches, learning_rates, strict=True), start=1):
        mine, other = chosen[batch.rows], rejected[batch.rows]
        push = batch.weights * loss.slope(beta * (logits[mine] - logits[other]))
        gradient = torch.zeros_like(logits).index_add(0, mine, push).index_add(0, other, -push)
        unit = optimizer.update(gradient, logits, slots, step, 1.0)
        logits = logits + law.rate * learning_rate / UNIT * (1.0 + law.growth * travelled) * unit
        travelled += learning_rate / UNIT
        path.append(logits)
    return torch.stack(path)


def without_offset(margins: Tensor, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Margins of pairs with and without the shift that all pairs of the same two tokens share: (rest, shift).

    margins: (..., pairs);  chosen, rejected: (pairs,) token indices

    A shift of one token against another raises the margins of the pairs that prefer it and lowers those of the others:
    half the difference of their means. Two tokens of which only one is ever preferred keep their margins, shift 0.
    """
    shift = torch.zeros_like(margins)
    low, high = torch.minimum(chosen, rejected), torch.maximum(chosen, rejected)
    for kind in {(int(a), int(b)) for a, b in zip(low, high, strict=True)}:
        mine = (low == kind[0]) & (high == kind[1])
        up, down = mine & (chosen == kind[0]), mine & (chosen == kind[1])
        if bool(up.any()) and bool(down.any()):
            half = (margins[..., up].mean(-1, keepdim=True) - margins[..., down].mean(-1, keepdim=True)) / 2
            shift = shift + half * (up.to(margins) - down.to(margins))
    return margins - shift, shift
