"""What people ask of a forecast: when to stop, would more pairs help, which concepts will lag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import curve_fit
from torch import Tensor

from margincast.intervals import Estimate
from margincast.recipe.recipe import Recipe
from margincast.records import Features
from margincast.trained.forecast import TrainedForecast
from margincast.trained.inputs import deep_spaces, plan_of, responses_of
from margincast.trained.laws import frozen_shape
from margincast.trained.noise import COVERAGE
from margincast.trained.shape import KERNEL_PAIRS, Spectrum, token_spectra

NEAR = 0.01  # of accuracy: what is still to be gained where accuracy has stopped rising
SHARES, DRAWS = (0.125, 0.25, 0.5), 4


def stops_rising(forecast: TrainedForecast) -> Estimate:
    """The recorded step from which held-out accuracy gains no more than a point, in the drawn runs."""
    best = forecast.draws[:, -1:] - NEAR
    first = torch.tensor(forecast.steps, dtype=torch.float64)[(forecast.draws >= best).double().argmax(1)]
    quantiles = torch.tensor([0.5, 0.5 - COVERAGE / 2, 0.5 + COVERAGE / 2], dtype=torch.float64)
    value, low, high = torch.quantile(first, quantiles, interpolation="nearest").tolist()
    return Estimate(value, low, high)


def still_rising(forecast: TrainedForecast) -> float:
    """How many of the drawn runs gain more than a point of accuracy in the last recorded stretch, as a share."""
    return float((forecast.draws[:, -1] > forecast.draws[:, -2] + NEAR).double().mean())


@dataclass(frozen=True)
class Pairs:
    """Held-out accuracy by the number of pairs that training takes, of the frozen shape, the amplitude as it is.

    counts, accuracies: of subsets drawn evenly, and of all of them;  doubled: accuracy expected of twice as many pairs
    limit: of however many, both from what the power law a - b n^-c near them gains; None where no such curve fits
    """

    counts: tuple[int, ...]
    accuracies: tuple[float, ...]
    doubled: float
    limit: float | None


def more_pairs(features: Features, recipe: Recipe, forecast: TrainedForecast) -> Pairs | None:
    """What more pairs of this kind would give, by what fewer give. None where features alone cannot say, and where
    training takes more pairs than the frozen shape does.

    Concepts keep their shares. The subsets of a size are averaged over a few draws.
    """
    taken = plan_of(recipe, len(features.train.pairs)).taken
    if forecast.spectrum is None or len(taken) > KERNEL_PAIRS:
        return None
    train, heldout = deep_spaces(features, recipe, taken)
    train, concepts = train.rows(taken), responses_of(features, features.train).concepts[taken]
    responses, laws = responses_of(features, features.heldout), forecast.constants.from_features
    nats = float(forecast.heldout.margins[-1].double().mean()) / recipe.beta
    generator = torch.Generator().manual_seed(0)

    def accuracy(spectrum: Spectrum) -> float:
        return float((frozen_shape(spectrum, responses, laws.shape, max(nats, 0.1)) > 0).double().mean())

    counts, found = [], []
    for share in SHARES:
        draws = [_evenly(concepts, share, generator) for _ in range(DRAWS)]
        counts.append(len(draws[0]))
        found.append(float(np.mean([accuracy(token_spectra(train.rows(rows), heldout)[0]) for rows in draws])))
    counts.append(len(train))
    found.append(accuracy(forecast.spectrum))
    doubled, limit = _extrapolate(counts, found)
    return Pairs(tuple(counts), tuple(found), doubled, limit)


def _evenly(concepts: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Rows of `share` of every concept's pairs, two at least."""
    parts = []
    for number in range(int(concepts.max()) + 1):
        rows = (concepts == number).nonzero()[:, 0]
        count = min(len(rows), max(2, round(share * len(rows))))
        parts.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(parts).sort().values


def _extrapolate(counts: Sequence[int], found: Sequence[float]) -> tuple[float, float | None]:
    """Accuracy at twice the last count, and in the limit: what a - b n^-c, c in [0.2, 1.5], gains from there."""

    def law(n: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a - b * (n / counts[-1]) ** -c

    start = (min(found[-1] + 0.02, 0.99), 0.02, 0.5)
    try:
        parameters, _ = curve_fit(
            law, np.array(counts, dtype=float), np.array(found), p0=start, bounds=((0.0, -0.5, 0.2), (1.0, 0.5, 1.5))
        )
    except RuntimeError:
        return found[-1], None
    now, twice = law(np.array([1.0, 2.0]) * counts[-1], *parameters)
    doubled, limit = np.clip([found[-1] + twice - now, found[-1] + parameters[0] - now], 0.0, 1.0)
    return float(doubled), float(limit)
