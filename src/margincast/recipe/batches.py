"""Which pairs does each optimizer step see, and with what weight? The order that transformers' Trainer draws.

Epoch e is a random permutation from a generator seeded with seed + e (accelerate's seedable sampler), cut into batches;
the last batch of an epoch may be smaller. With accumulation a step averages the means of several batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.errors import InputError


@dataclass(frozen=True)
class Batch:
    """rows: (pairs of the step,) indices; weights: (pairs of the step,) summing to 1."""

    rows: Tensor
    weights: Tensor


def batch_order(pairs: int, batch_size: int, steps: int, seed: int, accumulation: int = 1) -> Iterator[Batch]:
    """The batches of `steps` optimizer steps over `pairs` training pairs.

    Raises `InputError` when there is no pair.
    """
    _check_pairs(pairs)
    produced = 0
    epoch = 0
    while produced < steps:
        generator = torch.Generator().manual_seed(seed + epoch)
        batches = torch.split(torch.randperm(pairs, generator=generator), batch_size)
        for start in range(0, len(batches), accumulation):
            if produced == steps:
                return
            parts = batches[start : start + accumulation]
            weights = [torch.full((len(part),), 1.0 / (len(part) * len(parts)), dtype=torch.float64) for part in parts]
            yield Batch(torch.cat(parts), torch.cat(weights))
            produced += 1
        epoch += 1


def full_batch(pairs: int, steps: int) -> Iterator[Batch]:
    """Every pair at every step: gradient descent. Raises `InputError` when there is no pair."""
    _check_pairs(pairs)
    rows = torch.arange(pairs)
    weights = torch.full((pairs,), 1.0 / pairs, dtype=torch.float64)
    for _ in range(steps):
        yield Batch(rows, weights)


def _check_pairs(pairs: int) -> None:
    if pairs < 1:
        raise InputError("there is no training pair to draw batches from")
