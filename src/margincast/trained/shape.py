"""Which held-out pairs will gain more than others? Spectral shapes of the outputs of inner layers, before training.

Every weight trains, so that what layers before the last know comes into use too: the outputs of some are put side by
side as a pair's features. (Middle layers foresee training better than the last one: measured, docs.) With g^ a feature
less the mean of the training features, and the kernel of the signed pairs

    K_ij = (delta_i . delta_j)(g^_i . g^_j) = U diag(lambda) U^T,

    h_j(alpha) = K_jN U diag((lambda + ridge lambda_1)^-alpha) U^T 1

runs from the margins of one step of gradient descent (alpha = 0) to those of least squares (alpha = 1), as the path of
training does. Centring takes out what all prompts share, which `offset` describes. Any number of response tokens.

Where responses have many tokens a pair's features are signed already: for each layer the mean of its outputs over the
chosen response less that over the rejected one, K_ij = g^_i . g^_j. (Better than the products of errors and states that
the gradient of a sequence margin is made of: measured, docs.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.frozen.engine.state import TokenSpace

KERNEL_PAIRS = 4000  # training pairs whose kernel is diagonalised, 128 MB: of more, as many spread evenly


@dataclass(frozen=True)
class Spectrum:
    """The kernel of training pairs, diagonalised, and what other pairs have to do with it: any h(alpha) at once.

    values: (N,) lambda;  weights: (N,) U^T 1;  cross: (pairs, N) K_jN U
    """

    values: Tensor
    weights: Tensor
    cross: Tensor

    def shape(self, alpha: float, ridge: float) -> Tensor:
        """h(alpha), (pairs,) float64, up to scale. ridge: relative to the largest eigenvalue"""
        powers = (self.values + ridge * self.values[-1]) ** -alpha
        shape: Tensor = self.cross @ (powers * self.weights)
        return shape


def side_by_side(taken: Tensor, *splits: Tensor) -> list[Tensor]:
    """(pairs, layers, hidden) outputs of layers as (pairs, layers x hidden), each layer's less its mean over the pairs
    `taken` and at unit length, so that no pair is heard more than others for being far from the mean."""
    mean = taken.double().mean(0)
    return [torch.nn.functional.normalize(each.double() - mean, dim=-1).flatten(1) for each in splits]


def at_unit_length(*splits: Tensor) -> list[Tensor]:
    """(pairs, layers, hidden) pooled outputs of layers as (pairs, layers x hidden), each layer's at unit length.

    Of responses of many tokens they are differences, chosen less rejected: what all texts share has gone, and what all
    pairs share, which centring would take out, is what they ask for together.
    """
    return [torch.nn.functional.normalize(each.double(), dim=-1).flatten(1) for each in splits]


def token_spectra(train: TokenSpace, *spaces: TokenSpace, centre: bool = True) -> tuple[Spectrum, ...]:
    """The spectrum of centred features of `train`, or of `KERNEL_PAIRS` of them, spread evenly, against each of
    `spaces`. centre: False for responses of many tokens, see `at_unit_length`"""
    mean = train.features.double().mean(0) if centre else 0.0
    rows = torch.linspace(0, len(train) - 1, min(len(train), KERNEL_PAIRS), dtype=torch.float64).round().long()

    def centred(space: TokenSpace) -> TokenSpace:
        return TokenSpace(space.features.double() - mean, space.chosen, space.rejected, space.beta, space.tokens)

    drawn = centred(train).rows(rows)
    values, vectors = torch.linalg.eigh(drawn.kernel(drawn))
    values, weights = values.clamp_min(0.0), vectors.sum(0)
    return tuple(Spectrum(values, weights, centred(space).kernel(drawn) @ vectors) for space in spaces)


def unit(shape: Tensor) -> Tensor:
    """`shape` with a mean of size 1, its sign kept; where the mean says nothing, against its own spread."""
    mean, apart = shape.mean().abs(), spread(shape)
    return shape / torch.where(mean > 1e-3 * apart, mean, apart)


def spread(shape: Tensor) -> Tensor:
    """How far the entries of `shape` are from their mean; where they are all alike, how large they are."""
    apart, size = shape.std(correction=0), shape.mean().abs()
    return torch.where(apart > 1e-12 * size, apart, size).clamp_min(1e-300)
