"""How would margins of many tokens answer to a little more or less of each pair? One pass back through the run.

`frozen.attribution.sensitivity` for responses of any length, where margins are not linear in dW. With J = <Lambda, G>,
G = sum_i c_i sum_p s_p (e_y(p) - S(p)) g(p)^T and z(p) = Lambda g(p),

    dJ/dc_i = sum_p s_p (z[y] - S.z)        dJ/dW = -sum_p c_i s_p (S o (z - S.z)) g(p)^T

and c_i depends on W by the margin of pair i. A step is differentiated as it is carried out, the optimizer's rule and
clipping by autodiff; the moments between steps are made again (`replay`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margincast.features.positions import Positions
from margincast.frozen.attribution.edits import Edit, check_size
from margincast.frozen.attribution.reverse import Smooth
from margincast.frozen.attribution.sensitivity import Sensitivity, parts_of, weighed_pushes
from margincast.frozen.flow.integrate import Stride, follow
from margincast.frozen.tokens.decomposition import along, distributions, velocity
from margincast.frozen.tokens.forecast import FLOW_ORDER, spaces_of
from margincast.frozen.tokens.replay import (
    Followed,
    Moment,
    Run,
    affordable,
    backwards,
    carry_out,
    head_flow,
    stepped,
)
from margincast.frozen.tokens.space import HeadSpace
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss
from margincast.recipe.recipe import Recipe

TOGETHER_BYTES = 1 << 30  # of derivatives by W and by what the optimizer remembers that are carried back in one go


def token_sensitivity(
    positions: Positions, recipe: Recipe, functional: Callable[[Tensor], Tensor] | None = None
) -> Sensitivity:
    """`frozen.attribution.sensitivity.sensitivity` of `positions`.

    Each of the numbers is carried back on its own, for about three runs: a `functional` of few numbers is cheap, the
    margins themselves of many held-out pairs are not.
    """
    recipe, train, heldout = _problem(positions, recipe)
    one, zero = train.unembedding.new_ones(train.features.pairs), train.unembedding.new_zeros(train.features.pairs)
    here, twins = one.requires_grad_(), zero.requires_grad_()
    run = _run(
        _Weighed(train, here, twins), recipe, train, _path(_Weighed(train, here.detach(), twins.detach()), recipe)
    )
    steps = (0, run.legs[-1][1]) if run.legs else (0, 0)
    with torch.no_grad():
        last = carry_out(run, run.first(), steps)
        margins = _margins(heldout, last.state).cpu()  # where a `functional` has its own tensors
    margins.requires_grad_()
    values = (margins if functional is None else functional(margins)).reshape(-1)
    slopes = torch.stack([torch.autograd.grad(value, margins, retain_graph=True)[0] for value in values])
    slopes = slopes.to(train.unembedding.device)
    together = max(1, TOGETHER_BYTES // (3 * last.state.nbytes))
    found = [_carried_back(run, steps, heldout, last, some, (here, twins)) for some in torch.split(slopes, together)]
    weights, turned = (torch.cat(side).cpu() for side in zip(*found, strict=True))
    return Sensitivity(values.detach(), weights, turned)


@torch.no_grad()
def token_reweighed(positions: Positions, edit: Edit, recipe: Recipe) -> Tensor:
    """`frozen.attribution.sensitivity.reweighed` of `positions`."""
    recipe, train, heldout = _problem(positions, recipe)
    check_size(edit, train.features.pairs)
    weighed = _Weighed(train, *(part.to(train.unembedding) for part in parts_of(edit)))
    run = _run(weighed, recipe, train, _path(weighed, recipe))
    return _margins(heldout, carry_out(run, run.first(), (0, run.legs[-1][1])).state).cpu()


def _problem(positions: Positions, recipe: Recipe) -> tuple[Recipe, HeadSpace, HeadSpace]:
    recipe = recipe.for_pairs(positions.train.pairs)
    return recipe, *spaces_of(positions, recipe, torch.float64)


def _margins(space: HeadSpace, state: Tensor) -> Tensor:
    rewards = space.rewards(state)
    return rewards[:, 0] - rewards[:, 1]


def _run(weighed: _Weighed, recipe: Recipe, train: HeadSpace, path: tuple[tuple[Stride, ...], ...]) -> Run:
    if recipe.rule.flow:
        return Followed(head_flow(weighed, recipe.loss, train.unembedding, train.features.pairs), path)
    rule = Smooth(recipe.rule)
    return stepped(weighed, rule, recipe, train.unembedding, train.features.pairs, recipe.steps)


@torch.no_grad()
def _path(weighed: _Weighed, recipe: Recipe) -> tuple[tuple[Stride, ...], ...]:
    """The steps of a flow, which are what is differentiated."""
    if not recipe.rule.flow:
        return ()
    flow = head_flow(weighed, recipe.loss, weighed.space.unembedding, weighed.space.features.pairs)
    return tuple(follow(flow, [recipe.learning_rate * recipe.steps], order=FLOW_ORDER)[2])


def _carried_back(
    run: Run, steps: tuple[int, int], heldout: HeadSpace, last: Moment, slopes: Tensor, leaves: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Derivatives of F numbers by `leaves`, (F, N) each. slopes: (F, M), theirs by the held-out margins."""
    sides = [slopes.new_zeros(len(slopes), len(leaf)) for leaf in leaves]
    later: list[list[Tensor]] = []
    for slope in slopes:
        by_weights = velocity(
            heldout.features, _by_position(heldout, heldout.beta * slope), *_weight(heldout, last.state)
        )
        later.append([by_weights, *(torch.zeros_like(slot) for slot in last.slots.values())])
    before = run.first()
    with torch.no_grad():
        moments = backwards(before, steps, run.advance, affordable(before))
        for step, moment in moments:
            inputs = [each.clone().requires_grad_() for each in (moment.state, *moment.slots.values())]
            slots = dict(zip(moment.slots, inputs[1:], strict=True))
            with torch.enable_grad():
                after = run.advance(Moment(inputs[0], slots), step)
            outputs = [after.state, *after.slots.values()]
            for row, given in enumerate(later):
                found = torch.autograd.grad(
                    outputs, [*leaves, *inputs], given, retain_graph=True, materialize_grads=True
                )
                for side, part in zip(sides, found[:2], strict=True):
                    side[row] += part
                later[row] = list(found[2:])
    return sides[0], sides[1]


@dataclass(frozen=True)
class _Weighed:
    """The pairs with weights omega, `here`, and phi, `twins`; differentiable in them and in the state."""

    space: HeadSpace
    here: Tensor
    twins: Tensor

    def check(self) -> None:
        self.space.check()

    def zeros(self) -> Tensor:
        return self.space.zeros()

    def norm(self, gradient: Tensor) -> Tensor:
        return self.space.norm(gradient)

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        rows = self.space.rows(batch.rows)
        if loss.reference_free:
            state = state - self.space.unembedding
        rewards: Tensor = _Margins.apply(state, rows)  # type: ignore[no-untyped-call]
        pushes = weighed_pushes(rewards, batch.weights.to(rewards), self.here[batch.rows], self.twins[batch.rows], loss)
        out: Tensor = _Pull.apply(self.space.beta * pushes, state, rows)  # type: ignore[no-untyped-call]
        return out


class _Margins(torch.autograd.Function):
    """dW -> margins."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, space: HeadSpace) -> Tensor:
        ctx.space = space
        ctx.save_for_backward(state)
        return _margins(space, state)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (state,), space = ctx.saved_tensors, ctx.space
        return velocity(space.features, _by_position(space, space.beta * grad), *_weight(space, state)), None


class _Pull(torch.autograd.Function):
    """c, dW -> sum_i c_i sum_p s_p (e_y(p) - S(p)) g(p)^T."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, state: Tensor, space: HeadSpace) -> Tensor:
        ctx.space = space
        ctx.save_for_backward(coefficients, state)
        return velocity(space.features, _by_position(space, coefficients), *_weight(space, state))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (coefficients, state), space = ctx.saved_tensors, ctx.space
        features = space.features
        rates = along(features, [grad], *_weight(space, state))[0] * features.sign
        by_pair = torch.zeros_like(coefficients).index_add_(0, features.pair, rates)
        pulled = _by_position(space, coefficients)[:, None] * features.hidden
        by_state = torch.zeros_like(state)
        for rows, probability in distributions(features, *_weight(space, state)):
            moved = features.hidden[rows] @ grad.T
            moved -= (probability * moved).sum(1, keepdim=True)
            by_state.addmm_(moved.mul_(probability).T, pulled[rows], alpha=-1.0)
        return by_pair, by_state, None


def _by_position(space: HeadSpace, values: Tensor) -> Tensor:
    """(P,) values of the pairs, with the signs of sides."""
    return values[space.features.pair] * space.features.sign


def _weight(space: HeadSpace, state: Tensor) -> tuple[Tensor, Tensor | None]:
    return space.unembedding + state, space.bias
