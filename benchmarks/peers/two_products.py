"""The obvious step when two tokens occur: two matrix-vector products in torch, and logistic regression by autodiff."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def gradient(features: Tensor, sign: Tensor, state: Tensor, beta: float) -> Tensor:
    """Gradient of the mean DPO loss in the row of the first token, (hidden,); sign +1 where that one is chosen."""
    margins = beta * sign * (features @ (state[0] - state[1]))
    return features.T @ (-beta / len(features) * sign * (-margins).sigmoid())


def logistic_regression(features: Tensor, sign: Tensor, beta: float, rate: float, steps: int) -> Tensor:
    """Margins after `steps` Adam steps of a logistic regression in u = dW_0 = -dW_1, (pairs,)."""
    weight = torch.zeros(features.shape[1], dtype=features.dtype, requires_grad=True)
    # d/du is twice d/dW_0; Adam is scale-free but for eps.
    optimizer = torch.optim.Adam([weight], lr=rate, eps=2e-8)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = softplus(-2 * beta * sign * (features @ weight)).mean()
        loss.backward()
        optimizer.step()
    return (2 * beta * sign * (features @ weight)).detach()
