"""How good was a forecast that gives a law and not a number? Its CRPS, beside the floor that twins of the run set.

For a law F and what came, x (Gneiting & Raftery 2007, Eq. 20 and 21),

    CRPS(F, x) = integral of (F(z) - 1{z >= x})^2 dz = E|Y - x| - E|Y - Y'| / 2,        Y, Y' ~ F.

Runs under other batch orders are draws X, X' of one law. Who knows that law scores E|X - X'| / 2 in the mean: the
floor. rho = CRPS / floor is 1 for a forecast as good as can be made before training, 2 for another run taken for it.

A forecast keeps the median and the ends of its central interval. The law behind them is that of `trained.noise`:

- accuracies: a normal law clipped to [0, 1], what lies beyond being at the ends;
- margins: m + c (exp(a N) - 1), N standard normal, the one such law with these three quantiles. An amplitude whose
  logarithm is normal (c = m) and normal offsets (a -> 0) are its ends, and `trained.noise` draws from their sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[np.float64]
STRAIGHT = 1e-6  # |a N| at the interval's end below which the law of margins is taken for normal


def crps_of_draws(draws: ArrayLike, value: ArrayLike) -> Array:
    """CRPS of the law that gives every draw the same weight. draws: (..., draws);  value: (...)"""
    ordered = np.sort(np.asarray(draws, dtype=np.float64), axis=-1)
    count = ordered.shape[-1]
    # E|Y - Y'| / 2 = sum of (2 i - n - 1) y_(i) / n^2 over the draws in order.
    weights = (2.0 * np.arange(1, count + 1) - count - 1) / count**2
    misses = np.abs(ordered - np.asarray(value, dtype=np.float64)[..., None]).mean(axis=-1)
    return np.asarray(misses - ordered @ weights)


def crps_of_accuracy(median: ArrayLike, low: ArrayLike, high: ArrayLike, value: ArrayLike, level: float) -> Array:
    """CRPS of accuracies in [0, 1], all of one shape. low, high: ends of the central interval that holds `level`

    The spread is that of the wider side: an end at 0 or 1 may be clipped, and where both are the law is taken for as
    narrow as that allows. An interval without width is one number.
    """
    median, low, high, value = (np.asarray(each, dtype=np.float64) for each in (median, low, high, value))
    spread = np.maximum(high - median, median - low) / ndtri(0.5 + level / 2)
    sure = spread <= 0
    unit = np.where(sure, 1.0, spread)
    x, least, most = ((each - median) / unit for each in (value, np.zeros_like(median), np.ones_like(median)))
    # The law's distribution function is Phi between the ends, so the integral is of Phi^2 up to x, (1 - Phi)^2 after.
    score = unit * (_squared(x) - _squared(least) + _squared(-x) - _squared(-most))
    return np.where(sure, np.abs(value - median), score)


def _squared(z: Array) -> Array:
    """A function whose derivative is Phi(z)^2."""
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(z * ndtr(z) ** 2 + 2 * density * ndtr(z) - ndtr(np.sqrt(2) * z) / np.sqrt(np.pi))


def crps_of_margin(median: ArrayLike, low: ArrayLike, high: ArrayLike, value: ArrayLike, level: float) -> Array:
    """CRPS of margins, all of one shape. low, high: ends of the central interval that holds `level`, around the median

    An interval without width is one number.
    """
    median, low, high, value = (np.asarray(each, dtype=np.float64) for each in (median, low, high, value))
    end = ndtri(0.5 + level / 2)
    up, down = high - median, median - low
    sure = (up <= 0) | (down <= 0)
    up, down = (np.where(sure, 1.0, each) for each in (up, down))
    power = np.log(up / down)  # a N at the upper end
    straight = np.abs(power) < STRAIGHT
    bend = np.where(straight, 1.0, power)
    bent = _bent(value - median, bend / end, up / np.expm1(bend))
    normal = _normal((value - median) / (up / end)) * up / end
    return np.where(sure, np.abs(value - median), np.where(straight, normal, bent))


def _normal(x: Array) -> Array:
    """Of a standard normal law (Gneiting & Raftery 2007, Eq. 21)."""
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(x * (2 * ndtr(x) - 1) + 2 * density - 1 / np.sqrt(np.pi))


def _bent(x: Array, a: Array, c: Array) -> Array:
    """Of c (exp(a N) - 1): |c| times that of a log-normal law (Baran & Lerch 2015, Eq. 5). c has the sign of a."""
    y = 1 + x / c  # in units of the log-normal part, above 0 where the law has a density
    a = np.abs(a)
    z = np.log(np.maximum(y, 1e-300)) / a
    mean = np.exp(a**2 / 2)
    return np.asarray(np.abs(c) * (y * (2 * ndtr(z) - 1) - 2 * mean * (ndtr(z - a) + ndtr(a / np.sqrt(2)) - 1)))


def floor_of(runs: ArrayLike) -> Array:
    """Half of the mean difference of two of `runs`, (runs, ...), at least two twins: what no forecast can undercut."""
    values = np.asarray(runs, dtype=np.float64)
    first, second = np.triu_indices(len(values), k=1)
    return np.asarray(0.5 * np.abs(values[first] - values[second]).mean(axis=0))


def ratio(crps: Array, floor: Array) -> float:
    """rho of several quantities of one unit, (quantities,) each: their scores added up; nan over a floor of 0."""
    return float(crps.sum() / floor.sum()) if floor.sum() > 0 else float("nan")
