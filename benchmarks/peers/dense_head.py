"""The authors' way: a dense V x d head, log-softmax over the vocabulary, DPO's loss, autodiff, torch's Adam."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def train(
    features: Tensor, chosen: Tensor, rejected: Tensor, head: Tensor, beta: float, rate: float, steps: int
) -> Tensor:
    """Margins after `steps` full-batch steps, (pairs,). chosen, rejected: entries of the vocabulary; head: (V, d)."""
    weight = head.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=rate)

    def log_ratio(weights: Tensor) -> Tensor:
        logps = torch.log_softmax(features @ weights.T, dim=-1)
        return logps.gather(1, chosen[:, None]).squeeze(1) - logps.gather(1, rejected[:, None]).squeeze(1)

    with torch.no_grad():
        reference = log_ratio(head)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -logsigmoid(beta * (log_ratio(weight) - reference)).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return beta * (log_ratio(weight) - reference)
