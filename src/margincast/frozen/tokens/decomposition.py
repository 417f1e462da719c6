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

from margincast.features.positions import TokenFeatures
from margincast.recipe.losses import Loss

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


@dataclass(frozen=True)
class Contributions:
    """Who moves the rewards of one pair's responses: its Q positions, and P positions of N training pairs.

    by_position: (P, 2) of every training position to the chosen and the rejected response
    by_pair: (N, Q) of every training pair to every target position
    """

    by_position: Factors
    by_pair: Factors


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
    seen, expected = _seen_and_expected(train, weights, unembedding, bias)
    cooccurrence = (seen[targets.target] * targets.hidden).sum(1)
    probability_factor = -(expected[targets.target] * targets.hidden).sum(1)
    correlation = torch.zeros_like(cooccurrence)
    for rows, probability in distributions(targets, unembedding, bias):
        probability_factor[rows] -= ((probability @ seen) * targets.hidden[rows]).sum(1)
        correlation[rows] = ((probability @ expected) * targets.hidden[rows]).sum(1)
    return Factors(beta * cooccurrence, beta * probability_factor, beta * correlation)


@torch.no_grad()
def velocity(features: TokenFeatures, weights: Tensor, unembedding: Tensor, bias: Tensor | None = None) -> Tensor:
    """sum_p weights_p (e_y(p) - S(p)) g(p)^T, (V, hidden): with the weights of `pull`, dW/dt itself (Eq. 14)."""
    seen, expected = _seen_and_expected(features, weights, unembedding, bias)
    return seen.sub_(expected)


@torch.no_grad()
def along(features: TokenFeatures, direction: Tensor, unembedding: Tensor, bias: Tensor | None = None) -> Tensor:
    """(P,) derivatives of log pi of the target tokens when W moves along `direction`, (V, hidden)."""
    rates = (direction[features.target] * features.hidden).sum(1)
    for rows, probability in distributions(features, unembedding, bias):
        rates[rows] -= ((probability @ direction) * features.hidden[rows]).sum(1)
    return rates


@torch.no_grad()
def contributions(
    train: TokenFeatures,
    target: TokenFeatures,
    unembedding: Tensor,
    weights: Tensor,
    beta: float,
    bias: Tensor | None = None,
) -> Contributions:
    """What training positions and pairs add to d/dt of the rewards of one pair's responses.

    Arguments as of `token_rates`; sums over all training positions are the sums of its results. target: of one pair,
    whose distributions, positions x V, are held at once
    """
    own = _log_softmax(target, slice(None), unembedding, bias).exp_()
    by_position = [weights.new_zeros(len(weights), 2) for _ in range(3)]
    by_pair = [weights.new_zeros(train.pairs, len(target.target)) for _ in range(3)]
    for rows, probability in distributions(train, unembedding, bias):
        # C*, (block, target positions), with the pull of each training position.
        features = (train.hidden[rows] @ target.hidden.T) * (beta * weights[rows, None])
        tokens = train.target[rows]
        factors = (
            features * (tokens[:, None] == target.target),
            -features * (probability[:, target.target] + own[:, tokens].T),
            features * (probability @ own.T),
        )
        for factor, positions, pairs in zip(factors, by_position, by_pair, strict=True):
            positions[rows] = factor.new_zeros(len(factor), 2).index_add_(1, target.response, factor)
            pairs.index_add_(0, train.pair[rows], factor)
    return Contributions(Factors(*by_position), Factors(*by_pair))


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


def _seen_and_expected(
    features: TokenFeatures, weights: Tensor, unembedding: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """sum_p weights_p e_y(p) g(p)^T and sum_p weights_p S(p) g(p)^T, (V, hidden) each."""
    pulled = weights[:, None] * features.hidden
    seen = torch.zeros_like(unembedding).index_add_(0, features.target, pulled)
    expected = torch.zeros_like(unembedding)
    for rows, probability in distributions(features, unembedding, bias):
        expected.addmm_(probability.T, pulled[rows])
    return seen, expected


def _log_softmax(features: TokenFeatures, rows: slice, unembedding: Tensor, bias: Tensor | None) -> Tensor:
    logits = features.hidden[rows] @ unembedding.T
    return torch.log_softmax(logits if bias is None else logits + bias, dim=1)
