"""What brackets of the margins follow from signs of C alone, without running the flow? (Eq. 9, 10)

Every velocity is (beta^2/(N tau)) sum_i C_ij s_i with slopes s_i = -f'(r_i). Where each slope is known to lie in
[a_i, b_i], the velocity lies between sum_i (C+_ij a_i - C-_ij b_i) and sum_i (C+_ij b_i - C-_ij a_i), C = C+ - C-.

`first_order` takes [a, b] = [1/4, 1/2] from margins in [0, log 3], as the proof of Theorem A.1 does. `propagate`
starts from slopes in [0, 1], which is always true of the logistic loss, turns the bracket of the margins into a bracket
of the slopes, and repeats: each round is implied by the one before, so the bracket only tightens and never lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.state import TokenSpace

_MOST_ROUNDS = 60  # of tightening; any number gives a true bracket


@dataclass(frozen=True)
class Bracket:
    """lower <= margin <= upper at each time, for every pair.

    times: (times,) ascending from 0;  lower, upper: (times, pairs)
    """

    times: Tensor
    lower: Tensor
    upper: Tensor

    def intersect(self, other: Bracket) -> Bracket:
        """Two true brackets at the same times are one tighter one."""
        return Bracket(self.times, torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def certified_learned(self) -> Tensor:
        """How many pairs are certain to have a positive margin, (times,)."""
        return (self.lower > 0.0).sum(dim=1)


@dataclass(frozen=True)
class FirstOrder:
    """Slopes that bound the margins linearly in time: lower * t <= r_j(t) <= upper * t for t <= horizon.

    lower, upper: (pairs,) for the training pairs; heldout_lower, heldout_upper: (held-out pairs,)
    horizon: until when the argument holds; 0 when some training margin might fall below 0 at once
    """

    lower: Tensor
    upper: Tensor
    heldout_lower: Tensor
    heldout_upper: Tensor
    horizon: float


@dataclass(frozen=True)
class Propagated:
    """Brackets of the training and of the held-out margins, and how many rounds of tightening they took."""

    train: Bracket
    heldout: Bracket
    rounds: int


def first_order(train: TokenSpace, heldout: TokenSpace, tau: float = 1.0) -> FirstOrder:
    """The paper's slope argument on the actual C instead of its cluster prediction."""
    rate = _rate(train, tau)
    positive, negative = _split(train, train)
    lower, upper = rate * (positive / 4 - negative / 2).sum(1), rate * (positive / 2 - negative / 4).sum(1)
    positive, negative = _split(heldout, train)
    horizon = math.log(3.0) / max(float(upper.max()), 1e-300) if float(lower.min()) >= 0.0 else 0.0
    return FirstOrder(
        lower=lower,
        upper=upper,
        heldout_lower=rate * (positive / 4 - negative / 2).sum(1),
        heldout_upper=rate * (positive / 2 - negative / 4).sum(1),
        horizon=horizon,
    )


def propagate(
    train: TokenSpace, heldout: TokenSpace, times: Sequence[float], tau: float = 1.0, shrinkage: float = 1e-3
) -> Propagated:
    """Brackets at `times`, tightened until a round shrinks no bracket by more than `shrinkage` of its width.

    times: ascending, first 0. The slopes are bounded over each interval between neighbours, not at its ends only, so
    the bracket holds at every instant; more times make it tighter. One round costs (times) x (pairs)^2.
    Raises `InputError` for times that do not ascend from 0.
    """
    clock = torch.as_tensor(times, dtype=torch.float64)
    if clock.ndim != 1 or len(clock) < 2 or float(clock[0]) != 0.0 or bool((clock.diff() <= 0).any()):
        raise InputError("times of a propagated envelope must ascend strictly from 0")
    rate = _rate(train, tau)
    steps = clock.diff()[:, None]
    parts = _split(train, train)
    least = torch.zeros(len(steps), len(train), dtype=torch.float64)  # slopes over each interval: logistic, in [0, 1]
    most = torch.ones_like(least)
    bracket = _integrate(clock, steps, rate, parts, least, most)
    rounds = 1
    while True:
        # Lower and upper bound are linear in time between grid points, so their extremes are at the ends.
        highest = torch.maximum(bracket.upper[:-1], bracket.upper[1:])
        lowest = torch.minimum(bracket.lower[:-1], bracket.lower[1:])
        least, most = torch.maximum(least, torch.sigmoid(-highest)), torch.minimum(most, torch.sigmoid(-lowest))
        # least only rises and most only falls, so each round's bracket lies inside the one before at every instant.
        tighter = _integrate(clock, steps, rate, parts, least, most)
        before, after = bracket.upper - bracket.lower, tighter.upper - tighter.lower
        bracket, rounds = tighter, rounds + 1
        if rounds == _MOST_ROUNDS or bool((before - after <= shrinkage * before).all()):
            break
    return Propagated(bracket, _integrate(clock, steps, rate, _split(heldout, train), least, most), rounds)


def _integrate(
    clock: Tensor, steps: Tensor, rate: float, parts: tuple[Tensor, Tensor], least: Tensor, most: Tensor
) -> Bracket:
    """Bracket of the margins from slopes within [least, most] over each interval, (intervals, training pairs)."""
    positive, negative = parts
    lower = rate * steps * (least @ positive.T - most @ negative.T)
    upper = rate * steps * (most @ positive.T - least @ negative.T)
    start = torch.zeros(1, positive.shape[0], dtype=torch.float64)
    return Bracket(clock, torch.cat([start, lower.cumsum(0)]), torch.cat([start, upper.cumsum(0)]))


def _split(pairs: TokenSpace, train: TokenSpace) -> tuple[Tensor, Tensor]:
    """C+ and C- between pairs and training pairs, each (pairs, training pairs), entries >= 0."""
    C = pairs.kernel(train).double()
    return C.clamp_min(0.0), (-C).clamp_min(0.0)


def _rate(train: TokenSpace, tau: float) -> float:
    return train.beta**2 / (len(train) * tau)
