"""How do margins and gradients look when responses have many tokens and the unembedding moves? (Eq. 12-14)

Log-partitions do not cancel here, so the state is the whole dW, V x d, and every step goes through the softmax of every
response position of its batch, a block of positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.features.positions import TokenFeatures
from margincast.frozen.tokens.decomposition import block_buffers, block_height, blocks, distributions, pull
from margincast.passes.budgets import BUDGETS, Budgets
from margincast.passes.growth import growth_of
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss


@dataclass(frozen=True)
class HeadSpace:
    """Pairs with responses of any length as seen by the state dW, (V, hidden). A `frozen.engine.state.Space`.

    unembedding: (V, hidden) W0, in the dtype of the features;  bias: (V,), which does not move
    reference_free: rewards are beta log pi, not beta log pi / pi_ref
    same_arithmetic: log-probabilities that the features have are W0's in this dtype; else those are made again
    """

    features: TokenFeatures
    unembedding: Tensor
    beta: float
    bias: Tensor | None
    budgets: Budgets = BUDGETS
    reference_free: bool = False
    same_arithmetic: bool = False

    def check(self) -> None:
        """Raises `InputError` for features that are not finite."""
        if not bool(self.features.hidden.isfinite().all()):
            bad = int((~self.features.hidden.isfinite().all(dim=1)).nonzero()[0])
            raise InputError(f"features of pair {int(self.features.pair[bad])} are not finite; extract them in float32")

    def zeros(self) -> Tensor:
        return torch.zeros_like(self.unembedding)

    def norm(self, gradient: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(gradient)
        return length

    def rewards(self, state: Tensor) -> Tensor:
        """Sequence rewards at W0 + `state`, (pairs, 2), chosen first (Eq. 12)."""
        return self.features.per_response(self.token_rewards([state])[0])

    def first_rewards(self) -> Tensor:
        """(P,) what every response position adds to its reward at W0: 0; beta log pi / pi_ref of a policy that is not
        its reference; beta log pi where there is no reference."""
        if self.reference_free:
            return self.beta * self.features.share * self.first_logps
        ratios = self.features.start_log_ratios
        if ratios is None:
            return torch.zeros_like(self.features.hidden[:, 0])
        return self.beta * self.features.share * ratios.to(self.features.hidden)

    def token_rewards(self, states: Sequence[Tensor]) -> Tensor:
        """(K, P) what every response position adds to its sequence reward at W0 + each of K `states`.

        From what logits change by: the difference of two log-probabilities would be lost in their rounding. The softmax
        at W0 is made once for all states.
        """
        part = self.features
        moved = part.hidden.new_empty(len(states), len(part.hidden))
        height = block_height(len(part.hidden), self.unembedding, self.budgets)
        buffers = block_buffers(3, height, self.unembedding)
        for block in blocks(part, self.unembedding, self.bias, self.budgets, buffers[:2]):
            for row, state in zip(moved, states, strict=True):
                change = torch.mm(part.hidden[block.rows], state.T, out=buffers[2, : len(block.logits)])
                growth = growth_of(block.logits, block.probability, change)
                row[block.rows] = change.gather(1, part.target[block.rows, None])[:, 0] - growth[:, 0]
        return self.first_rewards() + self.beta * part.share * moved

    def rows(self, pairs: Tensor) -> HeadSpace:
        """The pairs at `pairs`, for a minibatch."""
        return replace(self, features=self.features.select(pairs))

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        """Gradient of the batch's mean loss at W0 + `state`, (V, hidden): minus Eq. 14. Without a reference at `state`,
        as `frozen.engine.step` has it."""
        gradient = self.zeros()
        for push in self._pushes(state if self.reference_free else self.unembedding + state, loss, batch):
            push.add_to(gradient)
        return gradient

    def push(self, state: Tensor, loss: Loss, batch: Batch) -> tuple[Push, Tensor]:
        """What the batch's gradient at W0 + `state` is made of, and the gradient."""
        gradient, parts = self.zeros(), []
        for push in self._pushes(self.unembedding + state, loss, batch):
            push.add_to(gradient)
            parts.append((push.margins, push.logps, push.slopes))
        if len(parts) == 1:
            return push, gradient
        margins, logps, slopes = (torch.cat(each) for each in zip(*parts, strict=True))
        part = self.features.select(batch.rows)
        return replace(push, part=part, margins=margins, logps=logps, slopes=slopes, kept=[]), gradient

    def _pushes(self, weight: Tensor, loss: Loss, batch: Batch) -> Iterator[Push]:
        """Those of parts of the batch at the weights W, each good until the next."""
        height = block_height(len(self.features.hidden), weight, self.budgets)
        buffers = block_buffers(2, height, weight)
        for some in _within(self.features, batch, height):
            yield self._push(weight, loss, some, buffers)

    def _push(self, weight: Tensor, loss: Loss, batch: Batch, buffers: Tensor) -> Push:
        """buffers: of `blocks`, which hold softmax rows that are kept, where all of them fit"""
        part = self._counted.select(batch.rows)
        kept: list[tuple[slice, Tensor]] = []
        keep = len(part.hidden) * len(weight) <= self.budgets.softmax_keep
        logps = torch.empty_like(part.hidden[:, 0])
        for block in blocks(part, weight, self.bias, self.budgets, buffers):
            logps[block.rows] = block.logps(part.target[block.rows])
            alone = len(block.probability) == len(part.hidden)  # no next block overwrites it
            if alone or keep:
                kept.append((block.rows, block.probability if alone else block.probability.clone()))
        ratios = logps if part.reference is None else logps - part.reference
        rewards = self.beta * part.per_response(part.share * ratios)
        margins = rewards[:, 0] - rewards[:, 1]
        slopes = loss.slope(margins) * batch.weights.to(rewards) * self.beta
        return Push(part, weight, self.bias, margins, logps, slopes, kept, self.budgets)

    @cached_property
    def _counted(self) -> TokenFeatures:
        """The features with, as `reference`, the log-probabilities that rewards are counted from, in the dtype of all
        else. Margins of a batch ask for them, rewards do not."""
        if self.reference_free:
            return replace(self.features, reference=None, start=None)
        ratios = self.features.start_log_ratios
        first = self.first_logps if ratios is None else self.first_logps - ratios.to(self.first_logps)
        return replace(self.features, reference=first, start=None)

    @cached_property
    def first_logps(self) -> Tensor:
        """(P,) log-probabilities at W0."""
        part, known = self.features, self.features.policy_logps
        if self.same_arithmetic and known is not None:
            return known.to(part.hidden)
        logps = torch.empty_like(part.hidden[:, 0])
        for block in blocks(part, self.unembedding, self.bias, self.budgets):
            logps[block.rows] = block.logps(part.target[block.rows])
        return logps


@dataclass(frozen=True)
class Push:
    """The pairs of a batch, met at the weights W: their gradient is sum_i slopes_i sum_p s_p (e_y(p) - S(p)) g(p)^T.

    part: their positions;  weight: (V, hidden), W;  margins: (pairs,);  logps: (P,) of the tokens
    slopes: (pairs,) beta w_i f'(r_i);  kept: blocks of S where they are few enough to be held
    """

    part: TokenFeatures
    weight: Tensor
    bias: Tensor | None
    margins: Tensor
    logps: Tensor
    slopes: Tensor
    kept: list[tuple[slice, Tensor]]
    budgets: Budgets

    def add_to(self, gradient: Tensor) -> None:
        """Adds the gradient to `gradient`, (V, hidden), in place."""
        part = self.part
        weights = self.slopes[part.pair] * part.sign
        pulled = weights[:, None] * part.hidden
        gradient.index_add_(0, part.target, pulled)
        for rows, probability in self._distributions():
            gradient.addmm_(probability.T, pulled[rows], alpha=-1.0)

    def along(self, directions: Sequence[Tensor]) -> Tensor:
        """The products of every pair's part of the gradient with K matrices (V, hidden), (K, pairs) float64."""
        part = self.part
        rates = part.hidden.new_empty(len(directions), len(part.hidden))
        for k, direction in enumerate(directions):
            rates[k] = (direction[part.target] * part.hidden).sum(1)
        for rows, probability in self._distributions():
            for k, direction in enumerate(directions):
                rates[k, rows] -= ((probability @ direction) * part.hidden[rows]).sum(1)
        sums = rates.new_zeros(len(directions), part.pairs, dtype=torch.float64)
        return self.slopes * sums.index_add_(1, part.pair, rates.double() * part.sign)

    def _distributions(self) -> Iterable[tuple[slice, Tensor]]:
        return self.kept or distributions(self.part, self.weight, self.bias, self.budgets)


def head_space(
    features: TokenFeatures,
    unembedding: Tensor,
    beta: float,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    budgets: Budgets = BUDGETS,
    loss: Loss | None = None,
) -> HeadSpace:
    """The `HeadSpace` of `features`, calculated in `dtype`, with rewards as `loss` has them: DPO's by itself."""
    # The model's own log-probabilities are of this arithmetic only where all of it is float32.
    alike = features.hidden.dtype == unembedding.dtype == dtype == torch.float32
    averaged, free = (False, False) if loss is None else (loss.averaged, loss.reference_free)
    features = replace(features, hidden=features.hidden.to(dtype), averaged=averaged)
    bias = None if bias is None else bias.detach().to(dtype)
    return HeadSpace(features, unembedding.detach().to(dtype), beta, bias, budgets, free, alike)


def first_pull(
    features: TokenFeatures, unembedding: Tensor, loss: Loss, beta: float, bias: Tensor | None = None
) -> Tensor:
    """`pull` at W0 = `unembedding`, which is in the dtype of the features, (P,)."""
    space = head_space(features, unembedding, beta, bias, unembedding.dtype, loss=loss)
    rewards = space.features.per_response(space.first_rewards())
    return pull(space.features, loss, beta, rewards[:, 0] - rewards[:, 1])


def _within(features: TokenFeatures, batch: Batch, room: int) -> Iterator[Batch]:
    """Parts of the batch with at most `room` positions, or one pair: its slope asks for no other pair."""
    lengths = torch.bincount(features.pair, minlength=features.pairs)[batch.rows].tolist()
    first, taken = 0, 0
    for place, length in enumerate(lengths):
        if taken and taken + length > room:
            yield Batch(batch.rows[first:place], batch.weights[first:place])
            first, taken = place, 0
        taken += length
    yield Batch(batch.rows[first:], batch.weights[first:])
