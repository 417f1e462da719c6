"""How is a run gone through backwards? Its states are made again from a few that are kept.

A state is as large as the unembedding, with what the optimizer remembers beside it two or three times that, so a run's
states are not all kept. `backwards` keeps some, and makes those between them again: of a run of T steps c + log2(T / c)
are held at once, at the cost of one run where c is T and of about log2(T / c) / 2 more where it is less.

The steps of a run fall into legs, each from a recorded step to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from margincast.frozen.engine.state import Space
from margincast.frozen.engine.step import take_step
from margincast.frozen.flow.integrate import Problem, Solve, Stride, retrace
from margincast.models.device import spare_bytes
from margincast.recipe.batches import Batch, full_batch
from margincast.recipe.loss import Loss
from margincast.recipe.optimizer import Rule, Slots
from margincast.recipe.recipe import Recipe

# What kept moments may take, of legs and of the steps within one each; a few are kept in any case. On a GPU they may
# take more (`spare_bytes`).
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Moment:
    """A run before one of its steps: dW, (V, hidden), and what the optimizer remembers, tensors of the same shape."""

    state: Tensor
    slots: Slots = field(default_factory=dict)


class Run(Protocol):
    """A run that can be carried out again from any of its moments.

    legs: its steps by leg, each (first, one past the last)
    """

    @property
    def legs(self) -> Sequence[tuple[int, int]]: ...

    def first(self) -> Moment: ...

    def advance(self, moment: Moment, step: int) -> Moment:
        """The moment after `step`, from 0, is carried out at `moment`, which stays as it is."""
        ...


@dataclass(frozen=True)
class Stepped:
    """A run of optimizer steps, that of `frozen.engine.step.simulate`."""

    space: Space
    rule: Rule
    recipe: Recipe
    unembedding: Tensor
    batches: tuple[Batch, ...]
    legs: tuple[tuple[int, int], ...]

    def first(self) -> Moment:
        return Moment(self.space.zeros())

    def rate(self, step: int) -> float:
        return self.rule.learning_rate * self.recipe.factor(step)

    def advance(self, moment: Moment, step: int) -> Moment:
        slots = {name: slot.clone() for name, slot in moment.slots.items()}
        state = take_step(
            self.space, self.rule, self.batches[step], moment.state, slots,
            number=step + 1, rate=self.rate(step), unembedding=self.unembedding, loss=self.recipe.loss,
            max_grad_norm=self.recipe.max_grad_norm,
        )  # fmt: skip
        return Moment(state, slots)


def stepped(space: Space, rule: Rule, recipe: Recipe, unembedding: Tensor, pairs: int, end: int) -> Stepped:
    """The first `end` steps, a recorded number, of the run of `recipe` on `pairs` pairs."""
    recorded = [step for step in recipe.recorded if step <= end]
    legs = tuple(pairwise(recorded))
    batches = tuple(batch for batch, _ in zip(recipe.batches(pairs), range(end), strict=False))
    return Stepped(space, rule, recipe, unembedding, batches, legs)


@dataclass(frozen=True)
class HeadFlow:
    """The flow of the whole dW for `follow`: explicit, as a state is too large to solve in."""

    space: Space
    loss: Loss
    batch: Batch
    unembedding: Tensor

    def zeros(self) -> Tensor:
        return self.space.zeros()

    def velocity(self, state: Tensor) -> Tensor:
        # As in `frozen.engine.step`: without a reference margins are those of W0 + dW.
        at = self.unembedding + state if self.loss.reference_free else state
        return -self.space.gradient(at, self.loss, self.batch)

    def implicit(self, state: Tensor) -> Solve:
        return explicit


def explicit(velocity: Tensor, h: float) -> Tensor:
    """A step of a flow whose derivative is taken for 0."""
    return h * velocity


def head_flow(space: Space, loss: Loss, unembedding: Tensor, pairs: int) -> HeadFlow:
    """The flow of all pairs."""
    (whole,) = full_batch(pairs, 1)
    return HeadFlow(space, loss, whole, unembedding)


@dataclass(frozen=True)
class Followed:
    """A flow along the steps that its integrator took. path: those of every leg"""

    problem: Problem
    path: tuple[tuple[Stride, ...], ...]

    @property
    def strides(self) -> tuple[Stride, ...]:
        return tuple(stride for leg in self.path for stride in leg)

    @property
    def legs(self) -> tuple[tuple[int, int], ...]:
        ends = [0]
        for leg in self.path:
            ends.append(ends[-1] + len(leg))
        return tuple(pairwise(ends))

    def first(self) -> Moment:
        return Moment(self.problem.zeros())

    def advance(self, moment: Moment, step: int) -> Moment:
        return Moment(retrace(self.problem, moment.state, self.strides[step]))


def carry_out(run: Run, moment: Moment, steps: tuple[int, int]) -> Moment:
    """The moment after the steps from the first of `steps` to one before the second."""
    for step in range(*steps):
        moment = run.advance(moment, step)
    return moment


def backwards(
    first: Moment, span: tuple[int, int], advance: Callable[[Moment, int], Moment], kept: int
) -> Iterator[tuple[int, Moment]]:
    """Every step of `span` (first, one past the last) with the moment before it, from the last to the first.

    first: the moment before the first of them;  kept: how many moments may be held beside it at once, 1 or more, and
    between two of them the logarithm of the steps there
    """
    low, high = span
    if high - low <= 1:
        yield from [(low, first)][: high - low]
        return
    pieces = min(kept + 1, high - low)
    bounds = [low + (high - low) * piece // pieces for piece in range(pieces + 1)]
    moments = [first]
    for piece in range(pieces - 1):
        moment = moments[-1]
        for step in range(bounds[piece], bounds[piece + 1]):
            moment = advance(moment, step)
        moments.append(moment)
    while moments:
        moment, piece = moments.pop(), len(moments)
        yield from backwards(moment, (bounds[piece], bounds[piece + 1]), advance, max(1, kept - piece))


def affordable(moment: Moment) -> int:
    """How many moments of a run that begins with `moment` fit into `KEPT_BYTES`, at least 1."""
    return max(1, spare_bytes(moment.state.device, KEPT_BYTES) // (3 * moment.state.nbytes))  # dW, Adam's memory
