"""How far may two ways of computing the same number be apart? One table, by dtype, with the reason.

Errors are measured against the largest number of the result: a margin near zero is a difference of large ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Largest error, as a part of the largest number of the result.

    formula: one expression, written in two ways
    forward: one pass through a small model, forward or backward, whose sums run in another order
    run: some tens of optimizer steps; Adam divides by small numbers, and every step builds on the one before
    """

    formula: float
    forward: float
    run: float


TOLERANCE = {
    # eps is 2.2e-16: 1e-12 leaves room for sums over thousands of terms, 1e-10 for a hundred steps of them.
    torch.float64: Tolerance(formula=1e-12, forward=1e-10, run=1e-10),
    # eps is 1.2e-7: ten layers of sums over tens of terms; the run is the contract's own 1e-4 of the largest margin.
    torch.float32: Tolerance(formula=1e-6, forward=2e-5, run=1e-4),
}


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a part of the largest number of `theirs`."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    scale = theirs.detach().double().abs().max()
    gap = (ours.detach().double() - theirs.detach().double()).abs().max()
    return float(gap / scale) if scale > 0 else float(gap)
