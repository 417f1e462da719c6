"""Why does the reward of a token move? Co-occurrence, probability and output-distribution factors, which add up to it.

Eq. 16 of the paper with its sign corrected: the probability factor is a sum. With C*(p) = g(p).g* and, for the training
position p of side s(p), residual e - S,

    dr(y)/dt = (beta^2/N) sum_p s(p) (-f'(m)) C*(p) [ 1{y = y(p)} - (S(p)[y] + S*[y(p)]) + S*.S(p) ]

Two routes give it. Summed over training positions, two matrices of the unembedding's shape hold all of them, for
O((P + Q) V d); by training position, for one response, the distributions meet in blocks. Nothing is ever P x V.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.features.positions import TokenFeatures
from margincast.passes.budgets import BUDGETS, Budgets
from margincast.recipe.losses import Loss

# Below this a logarithm is not taken of a probability, which in float32 is no number any more at -104.
SMALL = -60.0


@dataclass(frozen=True)
class Block:
    """Some positions met by the unembedding. The next block overwrites both tensors.

    rows: which positions;  logits, probability: (positions, V), of softmax
    """

    rows: slice
    logits: Tensor
    probability: Tensor

    def logps(self, target: Tensor) -> Tensor:
        """(positions,) log-probabilities of the tokens `target`, one of each position."""
        logps = self.probability.gather(1, target[:, None])[:, 0].log()
        small = logps < SMALL
        if bool(small.any()):
            logps[small] = torch.log_softmax(self.logits[small], dim=1).gather(1, target[small, None])[:, 0]
        return logps


@dataclass(frozen=True)
class Factors:
    """The three terms of a reward's derivative, with their signs: they add up to `total`. All of one shape."""

    cooccurrence: Tensor
    probability: Tensor
    correlation: Tensor

    @property
    def total(self) -> Tensor:
        return self.cooccurrence + self.probability + self.correlation

    def cpu(self) -> Factors:
        """The same with tensors on the CPU."""
        return Factors(self.cooccurrence.cpu(), self.probability.cpu(), self.correlation.cpu())


@dataclass(frozen=True)
class Contributions:
    """Who moves the rewards of one pair's responses: its Q positions, and P positions of N training pairs.

    by_position: (P, 2) of every training position to the chosen and the rejected response
    by_pair: (N, Q) of every training pair to every target position
    """

    by_position: Factors
    by_pair: Factors

    def cpu(self) -> Contributions:
        """The same with tensors on the CPU."""
        return Contributions(self.by_position.cpu(), self.by_pair.cpu())


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
    budgets: Budgets = BUDGETS,
) -> Factors:
    """d/dt of the reward of every target position under the gradient flow of `train` at W = `unembedding`, (Q,) each.

    weights: (P,) of `pull`;  unembedding: (V, hidden);  bias: (V,) of the unembedding, which does not move
    """
    seen, expected = _seen_and_expected(train, weights, unembedding, bias, budgets)
    cooccurrence = (seen[targets.target] * targets.hidden).sum(1)
    probability_factor = -(expected[targets.target] * targets.hidden).sum(1)
    correlation = torch.zeros_like(cooccurrence)
    for rows, probability in distributions(targets, unembedding, bias, budgets):
        probability_factor[rows] -= ((probability @ seen) * targets.hidden[rows]).sum(1)
        correlation[rows] = ((probability @ expected) * targets.hidden[rows]).sum(1)
    shares = beta * targets.share
    return Factors(shares * cooccurrence, shares * probability_factor, shares * correlation)


@torch.no_grad()
def velocity(features: TokenFeatures, weights: Tensor, unembedding: Tensor, bias: Tensor | None = None) -> Tensor:
    """sum_p weights_p (e_y(p) - S(p)) g(p)^T, (V, hidden): with the weights of `pull`, dW/dt itself (Eq. 14)."""
    seen, expected = _seen_and_expected(features, weights, unembedding, bias)
    return seen.sub_(expected)


@torch.no_grad()
def along(
    features: TokenFeatures, directions: Sequence[Tensor], unembedding: Tensor, bias: Tensor | None = None
) -> Tensor:
    """(K, P) derivatives of log pi of the target tokens when W moves along each of K `directions`, (V, hidden)."""
    rates = torch.stack([(direction[features.target] * features.hidden).sum(1) for direction in directions])
    for rows, probability in distributions(features, unembedding, bias):
        for rate, direction in zip(rates, directions, strict=True):
            rate[rows] -= ((probability @ direction) * features.hidden[rows]).sum(1)
    return rates


@torch.no_grad()
def contributions(
    train: TokenFeatures,
    target: TokenFeatures,
    unembedding: Tensor,
    weights: Tensor,
    beta: float,
    bias: Tensor | None = None,
    budgets: Budgets = BUDGETS,
) -> Contributions:
    """What training positions and pairs add to d/dt of the rewards of one pair's responses.

    Arguments as of `token_rates`; sums over all training positions are the sums of its results. target: of one pair,
    whose distributions, positions x V, are held at once
    """
    logits = target.hidden @ unembedding.T
    own = torch.softmax(logits if bias is None else logits + bias, dim=1)
    by_position = [weights.new_zeros(len(weights), 2) for _ in range(3)]
    by_pair = [weights.new_zeros(train.pairs, len(target.target)) for _ in range(3)]
    for rows, probability in distributions(train, unembedding, bias, budgets):
        # C*, (block, target positions), with the pull of each training position.
        features = (train.hidden[rows] @ target.hidden.T) * (beta * weights[rows, None]) * target.share
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
    features: TokenFeatures, unembedding: Tensor, bias: Tensor | None = None, budgets: Budgets = BUDGETS
) -> Iterator[tuple[slice, Tensor]]:
    """Output distributions S(W g), a block of positions at a time: (rows, (positions, V)). The next overwrites them."""
    for block in blocks(features, unembedding, bias, budgets):
        yield block.rows, block.probability


def blocks(
    features: TokenFeatures,
    unembedding: Tensor,
    bias: Tensor | None = None,
    budgets: Budgets = BUDGETS,
    buffers: Tensor | None = None,
) -> Iterator[Block]:
    """All positions, as many at a time as `budgets.logit_block` holds.

    buffers: of `block_buffers`, for logits and probabilities; made here where none are given
    """
    height = block_height(len(features.hidden), unembedding, budgets)
    if buffers is None:
        buffers = block_buffers(2, height, unembedding)
    logits, probability = buffers
    for start in range(0, len(features.hidden), height):
        hidden = features.hidden[start : start + height]
        block = Block(slice(start, start + height), logits[: len(hidden)], probability[: len(hidden)])
        torch.mm(hidden, unembedding.T, out=block.logits)
        if bias is not None:
            block.logits.add_(bias)
        torch.softmax(block.logits, dim=1, out=block.probability)
        yield block


def block_height(positions: int, unembedding: Tensor, budgets: Budgets) -> int:
    """How many of `positions` are met at a time."""
    return max(1, min(positions, budgets.logit_block // len(unembedding)))


def block_buffers(count: int, height: int, unembedding: Tensor) -> Tensor:
    """`count` buffers for `height` positions, (count, height, V), that serve block after block.

    Memory as large as a block is given back to the system when it is freed, and clearing it anew costs a fifth of the
    product.
    """
    return unembedding.new_empty(count, height, len(unembedding))


def _seen_and_expected(
    features: TokenFeatures, weights: Tensor, unembedding: Tensor, bias: Tensor | None, budgets: Budgets = BUDGETS
) -> tuple[Tensor, Tensor]:
    """sum_p weights_p e_y(p) g(p)^T and sum_p weights_p S(p) g(p)^T, (V, hidden) each."""
    pulled = weights[:, None] * features.hidden
    seen = torch.zeros_like(unembedding).index_add_(0, features.target, pulled)
    expected = torch.zeros_like(unembedding)
    for rows, probability in distributions(features, unembedding, bias, budgets):
        expected.addmm_(probability.T, pulled[rows])
    return seen, expected
