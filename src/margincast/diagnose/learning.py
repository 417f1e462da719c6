"""Which pairs cannot be learned, and which are in their own concept's way?

Unlearnable: on the flow of the squared loss in the pair kernel, r(t) = (I - exp(-K t)) 1, the share of time in which
the pair's own margin is not positive although it takes part in training. Times are spaced evenly in log t over three
decades that end at 1/lambda, where the leave-one-out loss would stop. 1: never learned.

Harm: a pair's first push on pairs j of its concept, K_ij = (delta_i^T delta_j)(ghat_i^T ghat_j), for responses of many
tokens that of `sequences`. Its size is the share of the total that is downward, sum_j max(-K_ij, 0) / sum_j |K_ij|. 0:
helps all of them, 1: harms all of them. Whether its mean is below 0 beyond noise is Student's t over the pairs j,
which are drawn as held-out pairs of another sample would be; many pairs are asked at once, so of those that are called
harmful a share of `FALSE_SHARE` at most is so by chance (Benjamini and Hochberg, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.kernel import blocks
from margincast.diagnose.leave_one_out import Spectrum
from margincast.diagnose.points import Points, S

TIMES, DECADES = 31, 3.0
BLOCK = 1024
FALSE_SHARE, TINY = 0.05, 1e-300


def unlearnable(within: Spectrum, ridge: float) -> Tensor:
    """Share of the flow during which each pair is not learned, (pairs,) in [0, 1]."""
    times = torch.logspace(-DECADES, 0.0, TIMES, dtype=torch.float64) / ridge
    ones = torch.ones(len(within.vectors), dtype=within.energies.dtype)
    waiting = torch.zeros_like(ones)
    for time in times.tolist():
        waiting += within.along_flow(ones, time) <= 0
    return waiting / TIMES


@dataclass(frozen=True)
class Harm:
    """downward: (pairs,) share of a pair's push that is downward, in [0, 1];  by_chance: (pairs,) the probability of a
    mean push as low as the pair's were the true mean 0; 1 for a pair that pushes on fewer than two others
    """

    downward: Tensor
    by_chance: Tensor


def harm(points: Points[S], targets: Tensor | None = None) -> Harm:
    """Of every pair's push on the other pairs of its concept.

    targets: (pairs,) bool, the pairs to look at alone, held-out ones: those of the pair's concept, or all where fewer
    than two are of it
    """
    downward = torch.zeros(len(points), dtype=torch.float64)
    by_chance = torch.ones_like(downward)
    for concept in range(int(points.concept.max()) + 1):
        rows = (points.concept == concept).nonzero().squeeze(1)
        columns = rows
        if targets is not None:
            same = rows[targets[rows]]
            columns = same if len(same) > 1 else targets.nonzero().squeeze(1)
        for part in blocks(len(rows), BLOCK):
            push = points.pushes(rows[part], columns)
            itself = rows[part][:, None] == columns
            push[itself] = 0.0
            total = push.abs().sum(dim=1)
            downward[rows[part]] = push.clamp(max=0.0).sum(dim=1).abs() / total.clamp_min(TINY)
            by_chance[rows[part]] = _low_by_chance(push, (~itself).sum(dim=1))
    return Harm(downward, by_chance)


def _low_by_chance(push: Tensor, count: Tensor) -> Tensor:
    """P(a mean as low as that of each row) under a true mean of 0, (rows,), of `count` entries; the others are 0."""
    from scipy.stats import t

    mean = push.sum(dim=1) / count.clamp_min(1)
    spread = (push.square().sum(dim=1) - count * mean.square()).clamp_min(0.0) / (count - 1).clamp_min(1)
    statistic = mean / (spread / count.clamp_min(1)).sqrt().clamp_min(TINY)
    chance = torch.from_numpy(t.cdf(statistic.numpy(), (count - 1).clamp_min(1).numpy()))
    return torch.where(count > 1, chance, 1.0)


def beyond_chance(by_chance: Tensor) -> Tensor:
    """Which of `by_chance`, (pairs,) probabilities, are so small that `FALSE_SHARE` of them at most is chance."""
    from scipy.stats import false_discovery_control

    return torch.from_numpy(false_discovery_control(by_chance.numpy()) <= FALSE_SHARE)
