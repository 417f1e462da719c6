"""How sure is a number computed from a finite set of pairs? 95% intervals over pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

if TYPE_CHECKING:
    from torch import Tensor

Values = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval [low, high]."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def proportion(successes: int, total: int) -> Estimate:
    """Share of successes, with Wilson's interval: unlike a bootstrap it stays honest at 0% and 100%."""
    z = float(norm.ppf(0.5 + LEVEL / 2))
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Estimate(share, float(max(centre - half, 0.0)), float(min(centre + half, 1.0)))


def normal_interval(value: float, error: float) -> Estimate:
    """A value with a known standard error."""
    half = float(norm.ppf(0.5 + LEVEL / 2)) * error
    return Estimate(value, value - half, value + half)


def bootstrap(statistic: Callable[..., float], *samples: Values, seed: int = 0) -> Estimate:
    """`statistic(*samples)` with a percentile bootstrap over pairs; samples are paired, (pairs,) each.

    With fewer than two pairs there is nothing to resample and the interval is (nan, nan); so it is for a value of nan,
    which resamples that miss the pair at fault would otherwise give an interval.
    """
    value = float(statistic(*samples))
    count = len(samples[0])
    if count < 2 or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    draws = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        index = generator.integers(count, size=count)
        draws[number] = statistic(*(sample[index] for sample in samples))
    low, high = np.nanquantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(value, float(low), float(high))


def mean_interval(values: Values, seed: int = 0) -> Estimate:
    """The mean of (pairs,) values with its bootstrap interval."""
    return bootstrap(lambda sample: float(np.mean(sample)), values, seed=seed)


@dataclass(frozen=True)
class Slope:
    """A least-squares slope, per token, and its standard error; not numbers where all lengths are the same."""

    value: float
    error: float


def clustered_slope(lengths: Tensor, rewards: Tensor) -> Slope:
    """Least squares of `rewards` on `lengths`, both (pairs, responses of each) float64, an intercept a column.

    Without one for each side, what chosen responses gain over rejected ones would count for length wherever they are
    the longer ones. The error is the sandwich with a pair's responses as one cluster, times
    G / (G - 1) x (N - 1) / (N - K) for G clusters of N responses together and K coefficients.
    """
    centred, count, coefficients = lengths - lengths.mean(0), lengths.numel(), 1 + lengths.shape[1]
    spread = float(centred.square().sum())
    if spread == 0 or count <= coefficients:
        return Slope(float("nan"), float("nan"))
    slope = float((centred * rewards).sum()) / spread
    residuals = rewards - rewards.mean(0) - slope * centred
    scores = (centred * residuals).sum(1)
    clusters = len(lengths)
    correction = clusters / (clusters - 1) * (count - 1) / (count - coefficients)
    return Slope(slope, (correction * float(scores.square().sum())) ** 0.5 / spread)
