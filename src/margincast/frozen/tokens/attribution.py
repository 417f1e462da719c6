"""Which training pair did what to a margin of many tokens? An exact sum of one signed contribution per training pair.

Over a leg of the run, from W_a to W_b = W_a + D, a target j moves by

    m_j(b) - m_j(a) = <C, D>,   C = beta sum_p s_p (e_y(p) - q(p)) g(p)^T,   q(p) . D g(p) = lse(W_b g) - lse(W_a g)

for any q(p) with the property on the right, a discrete gradient of log-sum-exp (`mean_softmax`). Steps add past
gradients (SGD, momentum, L2), or do so given the run's preconditioner (Adam), and a gradient is a sum over the pairs of
its batch, times the clipping factor. With Lambda_k the derivative of sum_legs <C, D> by that gradient, of step k,

    pair i contributes  sum_k <Lambda_k, G_k^i>

and these add up to the margin as an identity. Lambda is found from the last step to the first, through what the
optimizer remembers. No pair's are (`start`) what weight decay takes from W0, and margins at W0: where the loss has no
reference, or a trained adapter has moved them. s_p is 1 at chosen responses and -1 at rejected ones, over their length
where the loss averages.

With Adam the sum is NOT what leaving the pair out would do: without it the preconditioner would have been another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from margincast.frozen.attribution.targets import Sums, Target
from margincast.frozen.engine.step import clip_factor
from margincast.frozen.flow.integrate import Solve, retrace
from margincast.frozen.tokens.replay import (
    Followed,
    HeadFlow,
    Moment,
    Run,
    Stepped,
    affordable,
    backwards,
    carry_out,
    explicit,
)
from margincast.frozen.tokens.space import HeadSpace
from margincast.passes.growth import growth_of
from margincast.recipe.optimizer import Optimizer, Slots


@dataclass
class Adjoint:
    """Derivatives of the sum over the later legs and the rest of this one, for each of K targets (V, hidden) each.

    slopes: C of this leg;  excess: derivatives by W less C, which only weight decay has
    slots: derivatives by what the optimizer remembers, by name
    """

    slopes: list[Tensor] = field(default_factory=list)
    excess: list[Tensor] = field(default_factory=list)
    slots: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def weights(self) -> list[Tensor]:
        """Derivatives by W."""
        if not self.excess:
            return self.slopes
        return [slope + excess for slope, excess in zip(self.slopes, self.excess, strict=True)]


class Backward(Protocol):
    """A run that says what its pairs contributed."""

    @property
    def run(self) -> Run: ...

    def contributions(self, moment: Moment, step: int, adjoint: Adjoint) -> Tensor:
        """What the pairs add to each target in `step`, (K, N) float64. Takes `adjoint` to before the step."""
        ...


@torch.no_grad()
def sums(backward: Backward, spaces: dict[str, HeadSpace], targets: Sequence[Target]) -> Sums:
    """The margins' changes over the legs of a run as sums over its pairs.

    spaces: of the splits. Beside the kept moments of the run (`replay`) this holds three matrices (V, hidden) a target.
    """
    run, adjoint = backward.run, Adjoint()
    values = torch.zeros(len(targets), spaces["train"].features.pairs, dtype=torch.float64)
    first = run.first()
    kept = affordable(first)
    end: Tensor | None = None
    for leg, moment in backwards(first, (0, len(run.legs)), lambda at, leg: carry_out(run, at, run.legs[leg]), kept):
        first_step, past = run.legs[leg]
        for step, before in backwards(moment, (first_step, past), run.advance, kept):
            if step == past - 1:
                if end is None:
                    end = run.advance(before, step).state
                adjoint.slopes = mean_slopes(spaces, targets, moment.state, end)
            values += backward.contributions(before, step, adjoint).cpu()
        end = moment.state
    start = values.new_zeros(len(targets))
    for k, target in enumerate(targets):
        space = spaces[target.split]
        rewards = space.features.per_response(space.first_rewards().double())[target.rows]
        start[k] = (rewards[:, 0] - rewards[:, 1]).mean()
    if adjoint.excess:
        unembedding = spaces["train"].unembedding
        start += torch.stack([(each * unembedding).sum(dtype=torch.float64) for each in adjoint.excess]).cpu()
    return Sums(values, start)


@dataclass(frozen=True)
class SteppedBack:
    """Of optimizer steps."""

    run: Stepped
    space: HeadSpace

    def contributions(self, moment: Moment, step: int, adjoint: Adjoint) -> Tensor:
        run = self.run
        batch, rate = run.batches[step], run.rate(step)
        push, gradient = self.space.push(moment.state, run.recipe.loss, batch)
        clip = torch.ones(())
        if run.recipe.max_grad_norm:
            clip = clip_factor(self.space.norm(gradient), run.recipe.max_grad_norm)
            gradient *= clip
        rule = run.recipe.rule
        if rule.averaged is None:
            pulls = _through_linear(rule, moment.slots, step + 1, rate, adjoint)
        else:
            pulls = _through_mean(rule, rule.averaged, gradient, moment, step + 1, rate, adjoint)
        pushed = clip.double() * push.along(pulls).double()
        values = pushed.new_zeros(len(pulls), self.space.features.pairs)
        return values.index_add_(1, batch.rows.to(values.device), pushed)


@dataclass(frozen=True)
class FollowedBack:
    """Of a flow: the contributions are integrated by the very steps that its integrator took, so that they add up."""

    run: Followed
    flow: HeadFlow
    space: HeadSpace

    def contributions(self, moment: Moment, step: int, adjoint: Adjoint) -> Tensor:
        both = _Beside(self.flow, self.space, adjoint.slopes)
        numbers = moment.state.numel()
        count = len(adjoint.slopes) * self.space.features.pairs
        start = torch.cat([moment.state.flatten(), moment.state.new_zeros(count)])
        after = retrace(both, start, self.run.strides[step])
        return after[numbers:].view(len(adjoint.slopes), -1)


@dataclass(frozen=True)
class _Beside:
    """dW and <C, dW/dt> of every pair, in one vector."""

    flow: HeadFlow
    space: HeadSpace
    slopes: list[Tensor]

    def velocity(self, state: Tensor) -> Tensor:
        shape = self.space.unembedding.shape
        push, gradient = self.space.push(state[: shape.numel()].view(shape), self.flow.loss, self.flow.batch)
        return torch.cat([-gradient.flatten(), -push.along(self.slopes).flatten().to(state)])

    def implicit(self, state: Tensor) -> Solve:
        return explicit


def mean_slopes(spaces: dict[str, HeadSpace], targets: Sequence[Target], start: Tensor, end: Tensor) -> list[Tensor]:
    """C of every target, (V, hidden) each, between the states `start` and `end`."""
    found = [torch.zeros_like(start) for _ in targets]
    change = end - start
    for split, space in spaces.items():
        mine = [k for k, target in enumerate(targets) if target.split == split]
        if not mine:
            continue
        weights = start.new_zeros(len(mine), space.features.pairs)
        for row, k in enumerate(mine):
            weights[row, targets[k].rows] = space.beta / len(targets[k].rows)
        features = space.features.positions((weights != 0).any(0)[space.features.pair])
        signed = weights[:, features.pair] * features.sign
        height = max(1, space.budgets.logit_block // (4 * len(start)))
        weight = space.unembedding + start
        for first in range(0, len(features.hidden), height):
            rows = slice(first, first + height)
            hidden, tokens = features.hidden[rows], features.target[rows]
            logits = hidden @ weight.T
            mean = mean_softmax(logits if space.bias is None else logits + space.bias, hidden @ change.T)
            for row, k in enumerate(mine):
                used = signed[row, rows] != 0
                pulled = signed[row, rows][used, None] * hidden[used]
                found[k].index_add_(0, tokens[used], pulled)
                found[k].addmm_((mean if bool(used.all()) else mean[used]).T, pulled, alpha=-1.0)
    return found


def mean_softmax(logits: Tensor, change: Tensor) -> Tensor:
    """q, (rows, V), with q . change = lse(logits + change) - lse(logits) to rounding, and sum 1.

    The mean of softmax along the way by Simpson's rule, which is wrong by fourth order in the change, corrected along
    q o (change - q . change), which puts no probability where there is none and keeps the sum. (Gonzalez's discrete
    gradient, from the middle and along the change itself, is wrong by second order, and its q does not sum to 1: what
    moves all logits alike, as Adam and weight decay do, would count.)
    """
    known = torch.log_softmax(logits, dim=1)
    first, change = known.exp(), change.clone()
    growth = growth_of(known, first, change)
    mean = (
        first.add_((known + change - growth).exp_()).add_(torch.softmax(known + change / 2, dim=1), alpha=4.0).div_(6.0)
    )
    expected = (mean * change).sum(1, keepdim=True)
    away = change - expected
    spread = (mean * away.square()).sum(1, keepdim=True)
    share = torch.where(spread > 0, (growth - expected) / spread, 0.0)
    return mean.mul_(1.0 + share * away)


def _through_linear(optimizer: Optimizer, slots: Slots, step: int, rate: float, adjoint: Adjoint) -> list[Tensor]:
    """Lambda of every target, and `adjoint` before the step, of an optimizer that adds and scales.

    What the step does to all entries alike is read off its own rule, applied to unit vectors.
    """
    names = sorted({*slots, *adjoint.slots})
    unit = torch.eye(2 + len(names), dtype=torch.float64)
    after: Slots = {name: unit[2 + k].clone() for k, name in enumerate(names)}
    change = optimizer.update(unit[0], unit[1], after, step, rate).tolist()
    kept = {name: row[: len(unit)].tolist() for name, row in after.items()}
    count = len(adjoint.slopes)
    weights = adjoint.weights
    remembered = {name: adjoint.slots.get(name) for name in kept}

    def combined(place: int, target: int) -> Tensor:
        total: Tensor = change[place] * weights[target]
        for name, of_slot in remembered.items():
            if of_slot is not None and kept[name][place]:
                total = total.add(of_slot[target], alpha=kept[name][place])
        return total

    pulls = [combined(0, target) for target in range(count)]
    if optimizer.decay:
        excess = adjoint.excess or [torch.zeros_like(each) for each in weights]
        adjoint.excess = [each + combined(1, target) for target, each in enumerate(excess)]
    adjoint.slots = {name: [combined(2 + k, target) for target in range(count)] for k, name in enumerate(names)}
    return pulls


def _through_mean(
    optimizer: Optimizer, beta1: float, gradient: Tensor, moment: Moment, step: int, rate: float, adjoint: Adjoint
) -> list[Tensor]:
    """The same of Adam, given what it divided by."""
    slots = {name: slot.clone() for name, slot in moment.slots.items()}
    optimizer.update(gradient, torch.zeros_like(gradient), slots, step, rate)
    scale = optimizer.divisor(slots, step).reciprocal_().mul_(-rate / (1 - beta1**step))
    weights = adjoint.weights
    carried = adjoint.slots.get("mean") or [torch.zeros_like(each) for each in weights]
    carried = [each.mul_(beta1).addcmul_(scale, weight) for each, weight in zip(carried, weights, strict=True)]
    adjoint.slots = {"mean": carried}
    if optimizer.decay:
        excess = adjoint.excess or [torch.zeros_like(each) for each in weights]
        adjoint.excess = [
            each.sub_(weight, alpha=rate * optimizer.decay) for each, weight in zip(excess, weights, strict=True)
        ]
    return [(1 - beta1) * each for each in carried]
