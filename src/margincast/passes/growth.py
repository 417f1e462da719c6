"""How far apart are two distributions over the vocabulary, when one's logits are the other's and a change?

With p the first and d the change, log sum exp grows by log sum p exp(d). Less the mean of d under p that is the
Kullback-Leibler divergence of the second from the first, which is small where d is, and lost in the rounding of a
difference of log-probabilities: so it is taken of d itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

IN_CACHE = 8  # rows of logits that several operations go over one after the other while a processor's cache holds them
# A change of logits by which exp is taken of what probabilities times it would lose: below it even the smallest
# probability of float32, times exp of it and as many as a vocabulary has, is nothing beside 1.
LARGE = 40.0


def growth_of(logits: Tensor, probability: Tensor, change: Tensor) -> Tensor:
    """By how much log sum exp grows, less the mean of `change`, which is taken from `change` in place: (rows, 1).

    logits: (rows, V), up to what all of a row have in common;  probability: (rows, V) their softmax
    change: (rows, V) of the logits
    """
    growth = change.new_empty(len(change), 1)
    height = IN_CACHE if change.device.type == "cpu" else max(1, len(change))
    work = torch.empty_like(change[:height])
    for start in range(0, len(change), height):
        rows = slice(start, start + height)
        moved, known = change[rows], probability[rows]
        some = work[: len(moved)]
        # Whatever mean is taken, growth is beside it: its rounding is not lost.
        moved -= torch.mul(moved, known, out=some).sum(1, keepdim=True)
        growth[rows] = torch.expm1(moved, out=some).mul_(known).sum(1, keepdim=True).log1p_()
    large = change.amax(1) >= LARGE
    if bool(large.any()):
        known = torch.log_softmax(logits[large], dim=1)
        growth[large] = torch.logsumexp(known + change[large], 1, keepdim=True)
    return growth
