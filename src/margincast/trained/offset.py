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

from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss
from margincast.recipe.optimizer import Optimizer
from margincast.trained.time import UNIT


@dataclass(frozen=True)
class OffsetLaw:
    """rate: nats a token's shared logit moves in a step of learning rate `time.UNIT`;  growth: per path length
    remaining: the part of this path that is still there at the end of a run, where offsets wander
    """

    rate: float
    growth: float
    remaining: float = 1.0

    def fading(self, x: Tensor) -> Tensor:
        """The part of the path that is still there at x, the part of the run that is behind."""
        return 1.0 - (1.0 - self.remaining) * x


def offset_path(
    chosen: Tensor,
    rejected: Tensor,
    tokens: int,
    batches: Iterable[Batch],
    learning_rates: Sequence[float],
    optimizer: Optimizer,
    loss: Loss,
    beta: float,
    law: OffsetLaw,
    start: Tensor | None = None,
) -> Tensor:
    """Shared logit of every response token after every step, (steps + 1, tokens) float64, 0 first.

    chosen, rejected: (pairs,) token indices in [0, tokens) of the training pairs
    learning_rates: of each step, as scheduled;  start: (pairs,) margins before training, None: 0

    The margin of a pair shifts by beta times the chosen token's shared logit less the rejected one's.
    """
    logits = torch.zeros(tokens, dtype=torch.float64)
    slots: dict[str, Tensor] = {}
    path, travelled = [logits], 0.0
    for step, (batch, learning_rate) in enumerate(zip(batches, learning_rates, strict=True), start=1):
        of_chosen, of_rejected = chosen[batch.rows], rejected[batch.rows]
        margins = beta * (logits[of_chosen] - logits[of_rejected])
        if start is not None:
            margins = start[batch.rows] + margins
        push = batch.weights * loss.slope(margins)
        gradient = torch.zeros_like(logits).index_add(0, of_chosen, push).index_add(0, of_rejected, -push)
        unit = optimizer.update(gradient, logits, slots, step, 1.0)
        logits = logits + law.rate * learning_rate / UNIT * (1.0 + law.growth * travelled) * unit
        travelled += learning_rate / UNIT
        path.append(logits)
    return torch.stack(path)


@dataclass(frozen=True)
class Parts:
    """Margins over beta as a sum of three parts, (..., pairs) each.

    shared_offset: the shift that all pairs of the same two tokens share;  concept_offset: what each concept adds to it
    rest: the margin without both
    """

    rest: Tensor
    shared_offset: Tensor
    concept_offset: Tensor

    @property
    def shift(self) -> Tensor:
        return self.shared_offset + self.concept_offset


@dataclass(frozen=True)
class Kind:
    """Pairs of the same two tokens (of one concept): `up` prefers one of them, `down` the other. (pairs,) bool each."""

    up: Tensor
    down: Tensor

    @property
    def sign(self) -> Tensor:
        """(pairs,) +1 and -1 of this kind, 0 elsewhere: what a shift of the two tokens' logits does to margins."""
        return self.up.double() - self.down.double()


Kinds = tuple[Sequence[Kind], Sequence[Kind]]  # of all pairs, and of every concept


def kinds_of(chosen: Tensor, rejected: Tensor, concepts: Tensor | None = None) -> list[Kind]:
    """The kinds of pairs with members of both preferences: of others margins do not show a shift."""
    groups = torch.zeros_like(chosen) if concepts is None else concepts
    low, high = torch.minimum(chosen, rejected), torch.maximum(chosen, rejected)
    keys = torch.stack([groups, low, high], dim=1)
    found = []
    for group, first, second in sorted({tuple(key) for key in keys.tolist()}):
        members = (groups == group) & (low == first) & (high == second)
        kind = Kind(members & (chosen == first), members & (chosen == second))
        if bool(kind.up.any()) and bool(kind.down.any()):
            found.append(kind)
    return found


def parted(margins: Tensor, of_all: Sequence[Kind], of_concepts: Sequence[Kind]) -> Parts:
    """`margins`, (..., pairs), in parts. of_all: the kinds of all pairs;  of_concepts: those of every concept"""
    shared = shift_of(margins, of_all)
    of_concept = shift_of(margins - shared, of_concepts)
    return Parts(margins - shared - of_concept, shared, of_concept)


def shift_of(margins: Tensor, kinds: Sequence[Kind]) -> Tensor:
    """The shift of every kind: it raises the margins of one preference and lowers the other's, so it is half the
    difference of their means. Shape of `margins`."""
    shift = torch.zeros_like(margins)
    for kind in kinds:
        up, down = margins[..., kind.up].mean(-1, keepdim=True), margins[..., kind.down].mean(-1, keepdim=True)
        shift = shift + (up - down) / 2 * kind.sign.to(margins)
    return shift
