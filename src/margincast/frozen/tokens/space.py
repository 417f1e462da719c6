"""How do margins and gradients look when responses have many tokens and the unembedding moves? (Eq. 12-14)

Log-partitions do not cancel here, so the state is the whole dW, V x d, and every step goes through the softmax of every
response position of its batch, a block of positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.features.positions import TokenFeatures
from margincast.frozen.tokens.decomposition import distributions, log_distributions
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss

# Entries of softmax rows that a step keeps for its second product, 512 MiB in float64; a larger batch makes them twice.
KEEP = 1 << 26


@dataclass(frozen=True)
class HeadSpace:
    """Pairs with responses of any length as seen by the state dW, (V, hidden). A `frozen.engine.state.Space`.

    features: their `reference` is of this very arithmetic at W0, not of the model, so that margins start at exactly 0

    unembedding: (V, hidden) W0, in the dtype of the features;  bias: (V,), which does not move
    """

    features: TokenFeatures
    unembedding: Tensor
    beta: float
    bias: Tensor | None

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
        return self.features.per_response(self.token_rewards(state))

    def token_rewards(self, state: Tensor) -> Tensor:
        """(P,) what every response position adds to its sequence reward at W0 + `state`."""
        logps = _logps(self.features, self.unembedding + state, self.bias)
        return self.beta * (logps - _known(self.features))

    def rows(self, pairs: Tensor) -> HeadSpace:
        """The pairs at `pairs`, for a minibatch."""
        return replace(self, features=self.features.select(pairs))

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        """Gradient of the batch's mean loss at W0 + `state`, (V, hidden): minus Eq. 14."""
        return self.push(state, loss, batch).gradient()

    def push(self, state: Tensor, loss: Loss, batch: Batch) -> Push:
        """What the batch's gradient at W0 + `state` is made of."""
        part = self.features.select(batch.rows)
        weight = self.unembedding + state
        kept: list[tuple[slice, Tensor]] = []
        keep = len(part.hidden) * len(weight) <= KEEP
        logps = torch.empty_like(part.hidden[:, 0])
        for rows, block in log_distributions(part, weight, self.bias):
            logps[rows] = _own(part, rows, block)
            if keep:
                kept.append((rows, block.exp_()))
        rewards = self.beta * part.per_response(logps - _known(part))
        slopes = loss.slope(rewards[:, 0] - rewards[:, 1]) * batch.weights.to(rewards) * self.beta
        return Push(part, weight, self.bias, slopes, kept)


@dataclass(frozen=True)
class Push:
    """The pairs of a batch, met at the weights W: their gradient is sum_i slopes_i sum_p s_p (e_y(p) - S(p)) g(p)^T.

    part: their positions;  weight: (V, hidden), W;  slopes: (pairs,) beta w_i f'(r_i)
    kept: blocks of S where they are few enough to be held
    """

    part: TokenFeatures
    weight: Tensor
    bias: Tensor | None
    slopes: Tensor
    kept: list[tuple[slice, Tensor]]

    def gradient(self) -> Tensor:
        """(V, hidden)."""
        part = self.part
        weights = self.slopes[part.pair] * part.sign
        pulled = weights[:, None] * part.hidden
        gradient = torch.zeros_like(self.weight).index_add_(0, part.target, pulled)
        for rows, probability in self._distributions():
            gradient.addmm_(probability.T, pulled[rows], alpha=-1.0)
        return gradient

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
        return self.kept or distributions(self.part, self.weight, self.bias)


def head_space(
    features: TokenFeatures,
    unembedding: Tensor,
    beta: float,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> HeadSpace:
    """The `HeadSpace` of `features`, calculated in `dtype`."""
    features = replace(features, hidden=features.hidden.to(dtype), reference=None)
    unembedding = unembedding.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    return HeadSpace(replace(features, reference=_logps(features, unembedding, bias)), unembedding, beta, bias)


def _known(features: TokenFeatures) -> Tensor:
    assert features.reference is not None  # `head_space` gives it
    return features.reference


def _logps(features: TokenFeatures, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(P,) log-probabilities of the target tokens."""
    logps = torch.empty_like(features.hidden[:, 0])
    for rows, block in log_distributions(features, weight, bias):
        logps[rows] = _own(features, rows, block)
    return logps


def _own(features: TokenFeatures, rows: slice, logps: Tensor) -> Tensor:
    return logps.gather(1, features.target[rows, None])[:, 0]
