"""How would margins answer, to first order, to a little more or less of each training pair?

Give pair i the weight omega_i (1) and its flipped twin the weight phi_i (0), so that a step pushes with

    c_i = beta w_i [omega_i f'(r_i) - phi_i f'(-r_i)] / sum_batch w (omega + phi)

Dropping a pair is omega_i = 0, repeating it omega_i = 2, flipping it omega_i = 0 and phi_i = 1. The derivatives of any
function of the margins with respect to omega and phi come from reverse mode through the whole run: the other pairs'
coefficients, the clipping factor and Adam's preconditioner react. They add up over pairs; what is left out is the
second order. With minibatches they hold for the batches as they are: data with fewer pairs is drawn in another order.

The flow is followed by the implicit steps of `flow.integrate`, whose order holds for any J, so J may be held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.features.positions import Positions
from margincast.frozen.attribution.edits import Edit, check_size
from margincast.frozen.attribution.reverse import Smooth, margins, pull
from margincast.frozen.engine.spaces import refuse_bias, token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.frozen.flow.integrate import follow
from margincast.frozen.flow.stiff import RANK, Stiff
from margincast.models.device import forecast_device
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss
from margincast.recipe.recipe import Recipe
from margincast.records import Features

# Derivatives of so many numbers are carried back in one go.
TOGETHER = 64

Functional = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sensitivity:
    """First-order answers of F numbers to each of N training pairs.

    values: (F,) the numbers after the run
    weights: (F, N) derivatives with respect to the pair's weight;  twins: (F, N) to that of its flipped twin
    """

    values: Tensor
    weights: Tensor
    twins: Tensor

    @property
    def flips(self) -> Tensor:
        """The predicted change when one pair is flipped, (F, N)."""
        return self.twins - self.weights

    def change(self, edit: Edit) -> Tensor:
        """The predicted change of the numbers under `edit`, (F,). Raises `InputError` for another number of pairs."""
        check_size(edit, self.weights.shape[1])
        there, turned = parts_of(edit)
        return self.weights @ (there - 1.0) + self.twins @ turned


def sensitivity(features: Features | Positions, recipe: Recipe, functional: Functional | None = None) -> Sensitivity:
    """Derivatives of numbers made of the held-out margins after the last step of a run as `forecast_frozen` tells it.

    functional: (M,) held-out margins to (F,) numbers, differentiable in PyTorch; left out, the margins themselves

    Of positions each number is carried back on its own: give a functional of few of them.

    Raises what `forecast_frozen` raises.
    """
    if isinstance(features, Positions):
        from margincast.frozen.tokens.sensitivity import token_sensitivity

        return token_sensitivity(features, recipe, functional)
    recipe, train, heldout = _problem(features, recipe)
    return sensitivity_of(train, heldout, recipe, unembedding=features.unembedding, functional=functional)


def sensitivity_of(
    train: TokenSpace,
    targets: TokenSpace,
    recipe: Recipe,
    *,
    unembedding: Tensor,
    functional: Functional | None = None,
) -> Sensitivity:
    """`sensitivity` for pairs as the state sees them; unembedding: (T, hidden), W0's rows."""
    like = train.features.new_ones(len(train), dtype=torch.float64)
    here, twins = like.requires_grad_(), torch.zeros_like(like).requires_grad_()
    after = _margins(train, targets, recipe, unembedding, here, twins)
    margins = after.detach().cpu().requires_grad_()  # where a `functional` has its own tensors
    values = (margins if functional is None else functional(margins)).reshape(-1)
    parts = []
    for start in range(0, len(values), TOGETHER):
        some = values[start : start + TOGETHER]
        each = torch.eye(len(some), dtype=torch.float64)
        (slopes,) = torch.autograd.grad(some, margins, each, retain_graph=True, is_grads_batched=True)
        slopes = slopes.to(after.device)
        parts.append(torch.autograd.grad(after, (here, twins), slopes, retain_graph=True, is_grads_batched=True))
    weights, turned = (torch.cat(side).cpu() for side in zip(*parts, strict=True))
    return Sensitivity(values.detach(), weights, turned)


def reweighed(features: Features | Positions, edit: Edit, recipe: Recipe) -> Tensor:
    """Held-out margins, (M,), after the last step, with pairs weighed and flipped in the batches of the unedited run.

    Each step's weights are scaled to sum to 1 again. This run is what `sensitivity` differentiates; `rerun` draws the
    batches of the edited data anew, as real training does. On full batches and for the flow the two are the same.

    Raises what `forecast_frozen` raises, and `InputError` for an edit of another number of pairs.
    """
    if isinstance(features, Positions):
        from margincast.frozen.tokens.sensitivity import token_reweighed

        return token_reweighed(features, edit, recipe)
    recipe, train, heldout = _problem(features, recipe)
    check_size(edit, len(train))
    omega, phi = (part.to(train.features.device) for part in parts_of(edit))
    return _margins(train, heldout, recipe, features.unembedding, omega, phi).cpu()


def _problem(features: Features, recipe: Recipe) -> tuple[Recipe, TokenSpace, TokenSpace]:
    recipe = recipe.for_pairs(len(features.train.pairs))
    refuse_bias(features, recipe.loss)
    # In float64 throughout: derivatives through Adam's division are differences of large numbers.
    device = forecast_device(features.device)
    train, heldout = (space.to(device) for space in token_spaces(features, recipe, torch.float64))
    return recipe, train, heldout


def parts_of(edit: Edit) -> tuple[Tensor, Tensor]:
    """omega and phi of an edit."""
    zero = torch.zeros_like(edit.weights)
    return torch.where(edit.flipped, zero, edit.weights), torch.where(edit.flipped, edit.weights, zero)


def _margins(
    train: TokenSpace, targets: TokenSpace, recipe: Recipe, unembedding: Tensor, here: Tensor, twins: Tensor
) -> Tensor:
    """Margins of the targets after the run with weights omega and phi, differentiable in them."""
    space, loss, optimizer = _Weighed(train, here, twins), recipe.loss, recipe.rule
    start = unembedding.to(train.features.device).double()
    state = space.zeros()
    if optimizer.flow:
        flow = _WeighedFlow(space, loss, start if loss.reference_free else None)
        if recipe.steps:
            state = follow(flow, [optimizer.learning_rate * recipe.steps])[0][-1]
    else:
        run = simulate(
            space,
            Smooth(optimizer),
            recipe.batches(len(train)),
            unembedding=start,
            loss=loss,
            factor=recipe.factor,
            max_grad_norm=recipe.max_grad_norm,
        )
        for state in run:  # noqa: B007 (the last one)
            pass
    return margins(start + state if loss.reference_free else state, targets)


def weighed_pushes(margins: Tensor, weights: Tensor, here: Tensor, twins: Tensor, loss: Loss) -> Tensor:
    """c_i / beta of the pairs of a batch, (batch,), from their margins, weights in the batch, omega and phi."""
    pushes = weights * (here * loss.slope(margins) - twins * loss.slope(-margins))
    total = (weights * (here + twins)).sum()
    # A step whose pairs are all left out moves nothing.
    return pushes / total if float(total.detach()) else 0.0 * pushes


@dataclass(frozen=True)
class _Weighed:
    """The pairs with weights omega, `here`, and phi, `twins`; differentiable in them and in the state."""

    train: TokenSpace
    here: Tensor
    twins: Tensor

    def check(self) -> None:
        self.train.check()

    def zeros(self) -> Tensor:
        return self.train.zeros().double()

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        rows: Tensor | None = batch.rows
        weights, here, twins = batch.weights, self.here[batch.rows], self.twins[batch.rows]
        if len(batch.rows) == len(self.train):  # every pair, in whatever order
            rows, here, twins = None, self.here, self.twins
            weights = torch.zeros_like(weights).index_add_(0, batch.rows, weights)
        met = margins(state, self.train, rows)
        return pull(self.train.beta * weighed_pushes(met, weights.to(met), here, twins, loss), self.train, rows)

    def norm(self, gradient: Tensor) -> Tensor:
        return self.train.norm(gradient)


class _WeighedFlow:
    """The flow of `_Weighed` pairs for `follow`."""

    def __init__(self, space: _Weighed, loss: Loss, start: Tensor | None) -> None:
        self.space, self.loss = space, loss
        self.stiff = Stiff(space.train, loss, 1.0, RANK, start)

    def zeros(self) -> Tensor:
        return self.space.zeros()

    def velocity(self, state: Tensor) -> Tensor:
        return -self.space.gradient(self.stiff.start + state, self.loss, self.stiff.batch)

    def implicit(self, state: Tensor) -> Callable[[Tensor, float], Tensor]:
        return self.stiff.implicit(state.detach())
