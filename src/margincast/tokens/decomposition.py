"""Why does the reward of a token move? Co-occurrence, probability and output-distribution factors, which add up to it.

Eq. 16 of the paper with its sign corrected: the probability factor is a sum. With C*(p) = g(p).g* and, for the training
position p of side s(p), residual e - S,

    dr(y)/dt = (beta^2/N) sum_p s(p) (-f'(m)) C*(p) [ 1{y = y(p)} - (S(p)[y] + S*[y(p)]) + S*.S(p) ]

Two routes give it. Summed over training positions, two matrices of the unembedding's shape hold all of them, for
O((P + Q) V d); by training position, for one response, the distributions meet in blocks. Nothing is ever P x V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.losses import Loss
from margincast.tokens.features import TokenFeatures

# Entries of one block of softmax rows: 64 MiB in float32.
BLOCK = 1 << 24


@dataclass(frozen=True)
class Factors:
    """The three terms of a reward's derivative, with their signs: they add up to `total`. All of one shape."""

    cooccurrence: Tensor
    probability: Tensor
    correlation: Tensor

    @property
    def total(self) -> Tensor:
        return self.cooccurrence + self.probability + self.correlation


def pull(train: TokenFeatures, loss: Loss, beta: float, margins: Tensor) -> Tensor:
    """(P,) how hard every training position pulls: beta s (-f'(m)) / N, with the sign of its side. margins: (pairs,)"""
    return -loss.slope(margins)[train.pair] * train.sign * (beta / train.pairs)


@torch.no_grad()
def token_rates(
    train: TokenFeatures,
    targets: TokenFeatures,
    unembedding: Tensor,
    weights: Tensor,
    beta: float,
    bias: Tensor | None = None,
) -> Factors:
    """d/dt of the reward of every target position under the gradient flow of `train` at W = `unembedding`, (Q,) each.

    weights: (P,) of `pull`;  unembedding: (V, hidden);  bias: (V,) of the unembedding, which does not move
    """
    # Eq. 14 and 15 in matrix form: dW/dt = seen - expected.
    pulled = weights[:, None] * train.hidden
    seen = torch.zeros_like(unembedding).index_add_(0, train.target, pulled)
    expected = torch.zeros_like(unembedding)
    for rows, probability in distributions(train, unembedding, bias):
        expected.addmm_(probability.T, pulled[rows])
    cooccurrence = (seen[targets.target] * targets.hidden).sum(1)
    probability_factor = -(expected[targets.target] * targets.hidden).sum(1)
    correlation = torch.zeros_like(cooccurrence)
    for rows, probability in distributions(targets, unembedding, bias):
        probability_factor[rows] -= ((probability @ seen) * targets.hidden[rows]).sum(1)
        correlation[rows] = ((probability @ expected) * targets.hidden[rows]).sum(1)
    return Factors(beta * cooccurrence, beta * probability_factor, beta * correlation)


@torch.no_grad()
def contributions(
    train: TokenFeatures,
    target: TokenFeatures,
    unembedding: Tensor,
    weights: Tensor,
    beta: float,
    bias: Tensor | None = None,
) -> Factors:
    """What every training position adds to d/dt of the reward of `target`, (P,) each, summed over target's positions.

    Arguments as of `token_rates`; sums over all training positions are the sums of its results. target: a response or
    a token, whose distributions, positions x V, are held at once
    """
    own = _log_softmax(target, slice(None), unembedding, bias).exp_()
    cooccurrence = torch.zeros_like(weights)
    probability_factor = torch.zeros_like(weights)
    correlation = torch.zeros_like(weights)
    for rows, probability in distributions(train, unembedding, bias):
        features = train.hidden[rows] @ target.hidden.T  # C*, (block, target positions)
        tokens = train.target[rows]
        cooccurrence[rows] = (features * (tokens[:, None] == target.target)).sum(1)
        probability_factor[rows] = -(features * (probability[:, target.target] + own[:, tokens].T)).sum(1)
        correlation[rows] = (features * (probability @ own.T)).sum(1)
    scale = beta * weights
    return Factors(scale * cooccurrence, scale * probability_factor, scale * correlation)


def distributions(
    features: TokenFeatures, unembedding: Tensor, bias: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Output distributions S(W g), a block of positions at a time: (rows, (positions, V))."""
    for rows, logps in log_distributions(features, unembedding, bias):
        yield rows, logps.exp_()


def log_distributions(
    features: TokenFeatures, unembedding: Tensor, bias: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Logarithms of `distributions`."""
    height = max(1, BLOCK // len(unembedding))
    for start in range(0, len(features.hidden), height):
        rows = slice(start, start + height)
        yield rows, _log_softmax(features, rows, unembedding, bias)


def _log_softmax(features: TokenFeatures, rows: slice, unembedding: Tensor, bias: Tensor | None) -> Tensor:
    logits = features.hidden[rows] @ unembedding.T
    return torch.log_softmax(logits if bias is None else logits + bias, dim=1)
