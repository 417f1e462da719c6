"""How likely is a label wrong, given the margin that the other pairs foresee for it?

A pair whose left-out margin is r is right with probability sigma(a r); a share eps of labels was exchanged, without
regard to r. Both are fitted by maximum likelihood on the labels as given,

    sum_i log[(1 - eps) sigma(a r_i) + eps sigma(-a r_i)],

for all pairs together and then for every concept, which is drawn to the common values by a Gaussian of width 0.5 on
log a and on logit 2 eps. By Bayes' rule P(wrong | r) = eps sigma(-a r) / [(1 - eps) sigma(a r) + eps sigma(-a r)].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

WIDTH = 0.5
START = np.array([1.0, -2.0])  # log a, logit 2 eps


@dataclass(frozen=True)
class Noise:
    """Of each concept, (concepts,): `slope` a and `rate` eps, the share of wrong labels, at most 1/2."""

    slope: Tensor
    rate: Tensor

    def wrong(self, margins: Tensor, concept: Tensor) -> Tensor:
        """P(wrong) of pairs with left-out `margins`, (pairs,)."""
        right, rate = torch.sigmoid(self.slope[concept] * margins), self.rate[concept]
        return rate * (1 - right) / ((1 - rate) * right + rate * (1 - right)).clamp_min(1e-300)


def fit_noise(margins: Tensor, concept: Tensor) -> Noise:
    """Slope and rate of every concept from left-out `margins` and concept numbers, (pairs,) each."""
    values, numbers = margins.double().numpy(), concept.numpy()
    common = _fit(values, START, width=2.0)
    found = [_fit(values[numbers == k], common, WIDTH) for k in range(int(numbers.max()) + 1)]
    slope, rate = np.exp([x[0] for x in found]), expit([x[1] for x in found]) / 2
    return Noise(torch.from_numpy(slope), torch.from_numpy(rate))


def _fit(margins: NDArray[np.float64], centre: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    def cost(x: NDArray[np.float64]) -> float:
        right, rate = expit(np.exp(x[0]) * margins), expit(x[1]) / 2
        likelihood = (1 - rate) * right + rate * (1 - right)
        return float(-np.log(np.maximum(likelihood, 1e-300)).sum() + ((x - centre) ** 2).sum() / (2 * width**2))

    result: NDArray[np.float64] = minimize(cost, centre, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4}).x
    return result
