"""Which pairs cannot be learned, and which are in their own concept's way?

Unlearnable: on the flow of the squared loss in the pair kernel, r(t) = (I - exp(-K t)) 1, the share of time in which
the pair's own margin is not positive although it takes part in training. Times are spaced evenly in log t over three
decades that end at 1/lambda, where the leave-one-out loss would stop. 1: never learned.

Harm: a pair's first push on the other pairs of its concept, K_ij = (delta_i^T delta_j)(ghat_i^T ghat_j), for
responses of many tokens that of `sequences`: the share of its total that is downward, sum_j max(-K_ij, 0) / sum_j
|K_ij|. 0: helps all of them, 1: harms all of them. Were the signs a coin's, the share would be 1/2 with a standard
deviation of (sum_j K_ij^2)^(1/2) / (2 sum_j |K_ij|).
"""

from __future__ import annotations

import torch
from torch import Tensor

from margincast.diagnose.kernel import blocks
from margincast.diagnose.leave_one_out import Spectrum
from margincast.diagnose.points import Points, S

TIMES, DECADES = 31, 3.0
BLOCK = 1024


def unlearnable(within: Spectrum, ridge: float) -> Tensor:
    """Share of the flow during which each pair is not learned, (pairs,) in [0, 1]."""
    times = torch.logspace(-DECADES, 0.0, TIMES, dtype=torch.float64) / ridge
    ones = torch.ones(len(within.vectors), dtype=within.energies.dtype)
    waiting = torch.zeros_like(ones)
    for time in times.tolist():
        waiting += within.along_flow(ones, time) <= 0
    return waiting / TIMES


def harm(points: Points[S]) -> tuple[Tensor, Tensor]:
    """Downward share of each pair's push on its concept's other pairs, in [0, 1], and its deviation by chance.

    (pairs,) each; 0 and 1/2 for a pair that is alone.
    """
    share = torch.zeros(len(points), dtype=torch.float64)
    chance = torch.full_like(share, 0.5)
    for concept in range(int(points.concept.max()) + 1):
        rows = (points.concept == concept).nonzero().squeeze(1)
        for part in blocks(len(rows), BLOCK):
            push = points.pushes(rows[part], rows)
            push[torch.arange(len(part)), part] = 0.0
            total = push.abs().sum(dim=1)
            some = total > 0
            downward = push.clamp(max=0.0).sum(dim=1).abs()
            share[rows[part[some]]] = downward[some] / total[some]
            chance[rows[part[some]]] = push[some].norm(dim=1) / (2 * total[some])
    return share, chance
