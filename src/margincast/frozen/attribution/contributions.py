"""Which training pair did what to a margin? An exact sum of one signed contribution per training pair.

dW = kappa W0 + sum_i (e_w(i) u_i^T - e_l(i) v_i^T) (see `shares`), so that pair j, trained on or not, has the margin

    r_j = kappa beta delta_j^T W0 g_j + sum_i beta [ (delta_j)_w(i) u_i^T g_j - (delta_j)_l(i) v_i^T g_j ]

For SGD, gradient descent, momentum and gradient flow pair i's term is a_i beta (delta_j^T delta_i)(g_j^T g_i). For Adam
and AdamW it is exact given the run's preconditioner, and NOT what leaving the pair out would do, because without the
pair the preconditioner would have been another.

The products run in float64 whatever the features are stored in: embeddings share a large component, contributions
cancel, and a margin can be a thousandth of the largest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.attribution.shares import Coefficients, Shares, check_attributable, shares_of
from margincast.frozen.engine.history import record_run
from margincast.frozen.engine.spaces import refuse_bias, token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.driven import driven_flow
from margincast.models.device import forecast_device
from margincast.recipe.recipe import Recipe
from margincast.records import Features


@dataclass(frozen=True)
class Top:
    """The training pairs with the largest contributions to each target, by absolute value, largest first.

    indices, values: (targets, count);  positive, negative: (targets,) sums of all contributions of that sign
    rest: (targets,) sum of the contributions that are not among `values`
    """

    indices: Tensor
    values: Tensor
    positive: Tensor
    negative: Tensor
    rest: Tensor


@dataclass(frozen=True)
class Attribution:
    """The margins after `step` steps as sums over the training pairs.

    train, shares: where the run was calculated; `targets` of the methods, and what these give, are on the CPU
    unembedding: (T, hidden), W0's rows, and start_weight their coefficient in the margins: kappa, or 1 + kappa for a
        loss without a reference, whose margins begin at W0's
    targets_at_once: that are met with a block of training pairs;  block_numbers: in the largest temporary matrix
    """

    step: int
    train: TokenSpace
    shares: Shares
    unembedding: Tensor
    start_weight: float
    targets_at_once: int = field(default=1024, repr=False)
    block_numbers: int = field(default=1 << 23, repr=False)

    @property
    def exact(self) -> str:
        """In which sense the contributions are exact."""
        return self.shares.exact

    def start(self, targets: TokenSpace) -> Tensor:
        """The part of each margin that belongs to no pair, (targets,) float64: where it began (0 of a policy that
        was its own reference), and what weight decay took from W0."""
        return targets.margins(self.start_weight * self.unembedding.double())

    def contributions(self, targets: TokenSpace, rows: Tensor | None = None) -> Tensor:
        """What each training pair, or those at `rows`, contributes to each margin, (targets, N or rows) float64.

        Holds that many numbers: `top` and `by_group` are for more pairs than that.
        """
        rows = (self._everyone() if rows is None else rows).to(self.device)
        out = torch.empty(len(targets), len(rows), dtype=torch.float64)
        for some, met in self._parts(targets):
            for part in self._blocks(rows):
                out[some, part] = self._products(met, rows[part])
        return out

    def margins(self, targets: TokenSpace) -> Tensor:
        """All contributions and the start, (targets,) float64."""
        everyone = torch.zeros_like(self.train.chosen)
        return targets.moved(self.by_group(everyone, 1)[0]) + self.start(targets)

    def top(self, targets: TokenSpace, count: int) -> Top:
        """The `count` training pairs that matter most to each target, without holding targets x N numbers.

        Raises `InputError` for a count below 1 or above N.
        """
        if not 1 <= count <= len(self.train):
            raise InputError(f"top takes from 1 to all {len(self.train)} training pairs, got {count}")
        rows = self.shares.active()
        if len(rows) < count:  # the others contribute 0
            rows = self._everyone()
        found = [self._top(met, rows, count) for _, met in self._parts(targets)]
        return Top(*(torch.cat([getattr(top, name) for top in found]).cpu() for name in Top.__dataclass_fields__))

    def by_group(self, groups: Tensor, count: int) -> Tensor:
        """What the pairs of each group added to dW, (count, T, hidden) float64; groups: (N,) in [0, count).

        `targets.moved(states[k])` is then the sum of the contributions of group k, for any number of targets.
        """
        train = self.train
        states = train.features.new_zeros(count * train.tokens, train.features.shape[1], dtype=torch.float64)
        rows, groups = self.shares.active(), groups.to(self.device)
        for part in self._blocks(rows):
            here = rows[part]
            moves, first = self.shares.moves(train, here), groups[here] * train.tokens
            states.index_add_(0, first + train.chosen[here], moves.chosen)
            states.index_add_(0, first + train.rejected[here], moves.rejected, alpha=-1.0)
        return states.view(count, train.tokens, -1).cpu()

    @property
    def device(self) -> torch.device:
        """Where the run was calculated."""
        return self.train.features.device

    def _everyone(self) -> Tensor:
        return torch.arange(len(self.train), device=self.device)

    def _top(self, targets: TokenSpace, rows: Tensor, count: int) -> Top:
        values = targets.features.new_zeros(len(targets), 0)
        indices = targets.chosen.new_zeros(len(targets), 0)
        positive, negative = values.new_zeros(2, len(targets))
        for part in self._blocks(rows):
            block = self._products(targets, rows[part])
            positive += block.clamp(min=0.0).sum(dim=1)
            negative += block.clamp(max=0.0).sum(dim=1)
            best = block.abs().topk(min(count, block.shape[1]), dim=1).indices
            values = torch.cat([values, block.gather(1, best)], dim=1)
            indices = torch.cat([indices, rows[part][best]], dim=1)
            keep = values.abs().topk(min(count, values.shape[1]), dim=1).indices
            values, indices = values.gather(1, keep), indices.gather(1, keep)
        return Top(indices, values, positive, negative, positive + negative - values.sum(dim=1))

    def _products(self, targets: TokenSpace, rows: Tensor) -> Tensor:
        """Contributions of the pairs at `rows`, (targets, rows)."""
        moves, features = self.shares.moves(self.train, rows), targets.features.double()
        signs = features.new_zeros(self.train.tokens, len(targets))  # delta_j, in columns
        every = torch.arange(len(targets), device=self.device)
        signs[targets.chosen, every] += targets.beta
        signs[targets.rejected, every] -= targets.beta
        chosen, rejected = signs.T[:, self.train.chosen[rows]], signs.T[:, self.train.rejected[rows]]
        products = features @ moves.chosen.T
        if moves.rejected is moves.chosen:
            return products.mul_(chosen.sub_(rejected))
        return products.mul_(chosen).sub_(rejected.mul_(features @ moves.rejected.T))

    def _parts(self, targets: TokenSpace) -> Iterator[tuple[slice, TokenSpace]]:
        """Targets in groups whose features are held in float64, where the run was calculated."""
        for first in range(0, len(targets), self.targets_at_once):
            part = slice(first, min(first + self.targets_at_once, len(targets)))
            some = targets.rows(part).to(self.device)
            yield part, replace(some, features=some.features.double())

    def _blocks(self, rows: Tensor) -> Iterator[slice]:
        size = max(1, self.block_numbers // max(self.targets_at_once, 2 * self.train.features.shape[1]))
        return (slice(first, first + size) for first in range(0, len(rows), size))


def attribute(
    features: Features, recipe: Recipe, *, at: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> dict[int, Attribution]:
    """The attribution of all margins after each of the steps `at` (the last), of the run that `forecast_frozen` tells.

    `token_spaces(features, recipe)` gives the targets, held-out and training pairs.

    Raises what `forecast_frozen` raises, and `InputError` for a step that the run does not have and for an optimizer
    of which it is not known what a pair adds.
    """
    recipe = recipe.for_pairs(len(features.train.pairs))
    train, _ = token_spaces(features, recipe, dtype)
    refuse_bias(features, recipe.loss)
    train = train.to(forecast_device(features.device))
    return account(train, recipe, features.unembedding, [recipe.steps] if at is None else at)


def account(train: TokenSpace, recipe: Recipe, unembedding: Tensor, at: Sequence[int]) -> dict[int, Attribution]:
    """`attribute` for pairs as the state sees them; unembedding: (T, hidden), W0's rows. Runs where the pairs are."""
    check_attributable(recipe.rule)
    wanted = sorted(set(at))
    if not wanted or wanted[0] < 0 or wanted[-1] > recipe.steps:
        raise InputError(f"steps must lie in 0 .. {recipe.steps}, got {list(at)}")
    rule, loss = recipe.rule, recipe.loss
    free = 1.0 if loss.reference_free else 0.0
    if rule.flow:
        # At all recorded steps, as `forecast_frozen` asks: which times are asked for decides where its steps end.
        steps = sorted({*recipe.recorded, *wanted})
        times = [rule.learning_rate * step for step in steps]
        flow = driven_flow(train, times, loss, start=unembedding if free else None)
        return {
            step: Attribution(step, train, Coefficients(values), unembedding, free)
            for step, values in zip(steps, flow.coefficients, strict=True)
            if step in wanted
        }
    pushes = record_run(
        train,
        rule,
        recipe.batches(len(train)),
        unembedding=unembedding,
        loss=loss,
        factor=recipe.factor,
        max_grad_norm=recipe.max_grad_norm,
    )
    found = shares_of(pushes, rule, train, wanted)
    return {step: Attribution(step, train, shares, unembedding, free + kappa) for step, shares, kappa in found}
