"""Whose chosen likelihood will fall? Rates of log-probabilities at the start, and the CHES score beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from margincast.losses import Loss
from margincast.tokens.decomposition import pull, token_rates
from margincast.tokens.features import TokenFeatures


def response_rates(
    train: TokenFeatures,
    targets: TokenFeatures,
    unembedding: Tensor,
    loss: Loss,
    beta: float,
    bias: Tensor | None = None,
) -> Tensor:
    """d/dt of log pi of every target response at the start of training the unembedding, (pairs, 2), chosen first.

    A negative first column is a chosen response that training on `train` makes less likely from its first step on.
    """
    margins = torch.zeros(train.pairs, dtype=train.hidden.dtype)
    rates = token_rates(train, targets, unembedding, pull(train, loss, beta, margins), beta, bias)
    return targets.per_response(rates.total / beta)


def ches(features: TokenFeatures, *, length_normalized: bool = False) -> Tensor:
    """The centered hidden embedding similarity of every pair, (pairs,) float64 (Razin et al. 2024, arXiv 2410.08847).

    Larger means that the chosen response is expected to lose more. Hidden states of the response positions alone are
    summed; `length_normalized` takes their means.
    """
    sums = features.per_response(features.hidden.double())
    if length_normalized:
        ones = torch.ones(len(features.hidden), 1, dtype=torch.float64)
        sums = sums / features.per_response(ones)
    chosen, rejected = sums.unbind(1)
    return (chosen * rejected).sum(1) - (chosen * chosen).sum(1)
