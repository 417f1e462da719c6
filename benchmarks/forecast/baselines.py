"""What would others forecast? Learning curves extrapolated, regression on meta-features, training linearised.

Each has the signature of `evaluate`'s methods and may look at a tenth of a run's steps.

- Curves: Domhan et al. 2015's parametric families by least squares, and the posterior under the prior of LC-PFN
  (Adriaensen et al. 2023) by weighing drawn curves, which its network is trained to compute. The network itself is not
  used: `lcpfn` 0.1.3 asks for torch <= 1.11, and its weights are a download apart from the package.
- Meta-features: data, settings and pilot, to gradient boosting or ridge regression, after TuneAhead (Luo et al. 2026),
  whose code was not found.
- Linearised: see `linearise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.optimize import least_squares
from torch import Tensor

from benchmarks.forecast.linearise import linear_of
from benchmarks.forecast.methods import Answer, Method
from benchmarks.forecast.plan import Run
from benchmarks.forecast.truth import Truth

Array = NDArray[np.float64]
PROBE = 0.75  # alpha of a shape nearer to least squares
ALPHA = 0.25  # of the frozen shape that ranks pairs where a method says nothing about pairs
DRAWS, TRIES = 20_000, 400  # curves of the prior, and blocks of DRAWS tried curves to find them in


@dataclass(frozen=True)
class Points:
    """What the pilot shows of a curve: means after `steps` updates and their standard errors, (points,) each."""

    steps: Array
    values: Array
    noise: Array


def pilot_points(seen: Truth, concept: int | None, kind: Callable[[Tensor], Tensor]) -> Points:
    """Batches before their updates, training and held-out pairs at the pilot's end; those of one concept, or all."""
    tensors, pilot = seen.tensors, seen.run.pilot
    of_train, of_heldout = tensors["train_concept"], tensors["heldout_concept"]

    def mine(groups: Tensor) -> Tensor:
        return torch.ones(len(groups), dtype=torch.bool) if concept is None else groups == concept

    found = []
    for step in range(1, pilot):  # margins are 0 before the first update
        rows = seen.plan.batches[step].rows
        found.append((step, tensors["batches"][step, : len(rows)].double()[mine(of_train[rows])]))
    last = tensors["pilot_train"].double()[mine(of_train)], seen.pilot.margins[mine(of_heldout)]
    found += [(pilot, last[0]), (pilot, last[1])]
    steps, means, counts = np.array(
        [(step, float(kind(values).mean()), len(values)) for step, values in found if len(values)], dtype=float
    ).T
    spread = max(float(kind(torch.cat(last)).std()), 0.1 * float(np.abs(means).max()), 1e-6)
    return Points(steps, means, spread / np.sqrt(counts))


def accurate(margins: Tensor) -> Tensor:
    return (margins > 0).double()


# Families of Domhan et al. 2015, table 1, in x = step, with bounds and a start for values of size 1.
FAMILIES: dict[str, tuple[Callable[..., Array], Sequence[tuple[float, float, float]]]] = {
    "pow": (lambda x, a, p: a * x**p, [(-50, 1, 50), (0, 0.5, 4)]),
    "pow3": (lambda x, c, a, p: c - a * x**-p, [(-2, 1, 5), (-5, 1, 5), (0.01, 0.5, 4)]),
    "log power": (lambda x, a, b, c: a / (1 + (x / np.exp(b)) ** c), [(-5, 1, 5), (-2, 2, 6), (-4, -1, 0)]),
    "ilog2": (lambda x, c, a: c - a / np.log(x + 1), [(-2, 1, 5), (-5, 1, 5)]),
    "exp3": (lambda x, c, a, b: c - np.exp(-a * x + b), [(-2, 1, 5), (0, 0.1, 4), (-5, 0, 3)]),
    "mmf": (
        lambda x, a, b, k, d: a - (a - b) / (1 + (k * x) ** d),
        [(-5, 1, 5), (-2, 0, 2), (1e-3, 0.1, 2), (0.1, 1, 4)],
    ),
    "janoschek": (
        lambda x, a, b, k, d: a - (a - b) * np.exp(-k * x**d),
        [(-5, 1, 5), (-2, 0, 2), (1e-4, 0.1, 2), (0.1, 1, 4)],
    ),
}


def extrapolate(points: Points, end: int) -> float:
    """The median of what the families say of step `end`, each fitted by least squares with its points' errors."""
    size = max(float(np.abs(points.values).max()), 1e-9)
    ends = []
    for family, bounds in FAMILIES.values():
        low, start, high = np.array(bounds, dtype=float).T

        def misfit(given: Array, family: Callable[..., Array] = family) -> Array:
            return np.asarray((family(points.steps, *given) - points.values / size) / (points.noise / size))

        # A weak pull to the start decides where there are fewer points than parameters.
        def pulled(given: Array, start: Array = start, misfit: Callable[[Array], Array] = misfit) -> Array:
            return np.concatenate([misfit(given), 0.1 * (given - start)])

        fitted = least_squares(pulled, start, bounds=(low, high), max_nfev=2000)
        ends.append(size * float(family(np.array([float(end)]), *fitted.x)[0]))
    return float(np.median(ends))


@cache
def prior_curves(length: int) -> Array:
    """Curves of LC-PFN's prior at steps 1 .. length, (draws, length): weighted sums of pow3, ilog2 and janoschek.

    Parameters and weights have the distributions of `lcpfn` 0.1.3; a curve that does not rise or leaves [0, 1] is out.
    """
    drawn = np.random.default_rng(0)
    x = np.arange(1, length + 1, dtype=float)
    kept: list[Array] = []
    for _ in range(TRIES):

        def uniform(low: float, high: float) -> Array:
            return drawn.uniform(low, high, (DRAWS, 1))

        pow3 = uniform(0, 1.25) - uniform(-0.6, 0.6) * x ** -drawn.lognormal(0, 2, (DRAWS, 1))
        ilog2 = uniform(0, 1) - uniform(-0.5, 0.5) / np.log(x + 1)
        a, b = uniform(0, 1), uniform(0, 2)
        k, d = drawn.lognormal(-2, 1, (DRAWS, 1)), drawn.lognormal(0, 0.5, (DRAWS, 1))
        y = uniform(0, 1) * pow3 + uniform(0, 1) * ilog2 + uniform(0, 1) * (a - (a - b) * np.exp(-k * x**d))
        kept.append(y[(y[:, -1] > y[:, 0]) & (y >= 0).all(1) & (y <= 1).all(1)])
        if sum(map(len, kept)) >= DRAWS:
            break
    return np.concatenate(kept)


def posterior_median(points: Points, end: int) -> float:
    """Of a curve in [0, 1] at step `end`, its drawn curves weighed by how well they fit the points."""
    curves = prior_curves(end)
    misfit = (curves[:, points.steps.astype(int) - 1] - points.values) / points.noise
    log_weights = -0.5 * np.square(misfit).sum(1)
    weights = np.exp(log_weights - log_weights.max())
    order = np.argsort(curves[:, -1])
    share = np.cumsum(weights[order]) / weights.sum()
    return float(curves[order, -1][np.searchsorted(share, 0.5)])


def curves(seen: Truth, others: Sequence[Truth]) -> Answer:
    """Parametric curves through the pilot; ranks of pairs are the pilot's."""
    concepts = range(len(seen.run.concepts))
    accuracy = [extrapolate(pilot_points(seen, concept, accurate), seen.run.steps) for concept in concepts]
    mean = extrapolate(pilot_points(seen, None, lambda margins: margins), seen.run.steps)
    return Answer(seen.pilot.margins, list(np.clip(accuracy, 0.0, 1.0)), mean)


def prior_fitted_curves(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The posterior under LC-PFN's prior; margins in parts of the largest mean margin that another run came to."""
    concepts, steps = range(len(seen.run.concepts)), seen.run.steps
    accuracy = [posterior_median(pilot_points(seen, concept, accurate), steps) for concept in concepts]
    top = max(float(other.margins[-1].mean()) for other in others)
    mean = top * posterior_median(pilot_points(seen, None, lambda margins: margins / top), steps)
    return Answer(seen.pilot.margins, accuracy, mean)


_meta: dict[Run, Array] = {}


def meta_features(seen: Truth) -> Array:
    """A row per concept: data, settings, pilot."""
    run, (train, heldout) = seen.run, seen.spaces
    if run in _meta:
        return _meta[run]
    centred = train.features - train.features.mean(0)
    energy = torch.linalg.svdvals(centred).square()
    energy = energy / energy.sum()
    points = pilot_points(seen, None, lambda margins: margins)
    parts = seen.part(seen.pilot.margins)
    rest, shift = parts.rest, parts.shift
    losses = seen.plan.loss.value(run.beta * seen.pilot.margins).mean()
    norms = seen.tensors["gradient_norm"][: run.pilot].double()
    whole = [
        len(run.concepts), np.log(len(train)), seen.spread, float(energy[0]), float(energy[:10].sum()),
        -float((energy * energy.clamp_min(1e-12).log()).sum()), float((train.chosen == 1).double().mean()),
        np.log(seen.length(run.steps)), np.log(run.learning_rate), np.log(run.steps), np.log(run.batch),
        np.log(run.beta),
        float(run.train == "lora"), float(seen.pilot.margins.mean()), float(rest.mean()), float(shift.abs().mean()),
        float(points.values[-2]), float((np.log(2) - losses) / run.beta / run.pilot), float(norms.log().mean()),
        float((norms[-1] / norms[0]).log()),
    ]  # fmt: skip
    shape, probe = seen.shape(ALPHA), seen.shape(PROBE)
    of_train = seen.tensors["train_concept"]
    rows = []
    for number, members in enumerate(seen.groups):
        mine = of_train == number
        own = [
            np.log(float(mine.sum())), float((train.chosen[mine] == 1).double().mean()),
            float((heldout.chosen[members] == 1).double().mean()), float((shape[members] > 0).double().mean()),
            float((probe[members] > 0).double().mean()), float((seen.pilot.margins[members] > 0).double().mean()),
            float((rest[members] > 0).double().mean()), float(rest[members].mean()),
        ]  # fmt: skip
        rows.append(whole + own)
    return _meta.setdefault(run, np.array(rows, dtype=float))


def regressors() -> list[Any]:
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    boosted = [
        GradientBoostingRegressor(n_estimators=count, max_depth=2, learning_rate=0.1, subsample=0.8, random_state=0)
        for count in (30, 100)
    ]
    return [*boosted, *(make_pipeline(StandardScaler(), Ridge(strength)) for strength in (1.0, 10.0, 100.0))]


def best_regressor(rows: Array, targets: Array, sets: Sequence[str]) -> Any:
    """The one with the least absolute error on sets it was not fitted on, fitted on all."""
    from sklearn.base import clone
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    errors = [
        np.abs(cross_val_predict(clone(model), rows, targets, groups=sets, cv=LeaveOneGroupOut()) - targets).mean()
        for model in regressors()
    ]
    return regressors()[int(np.argmin(errors))].fit(rows, targets)


_fitted: dict[tuple[Run, ...], tuple[Any, Any]] = {}


def fitted(runs: Sequence[Truth]) -> tuple[Any, Any]:
    """Regressors for the accuracy of a concept, and for the log mean margin of a run from its concepts' mean row."""
    key = tuple(seen.run for seen in runs)
    if key not in _fitted:
        rows = [meta_features(seen) for seen in runs]
        truths = np.array([float(accurate(s.margins[-1][members]).mean()) for s in runs for members in s.groups])
        sizes = np.array([np.log(max(1e-2, float(seen.margins[-1].mean()))) for seen in runs])
        sets = [seen.run.personas for seen in runs]
        of_concepts = [seen.run.personas for seen in runs for _ in seen.groups]
        _fitted[key] = (
            best_regressor(np.concatenate(rows), truths, of_concepts),
            best_regressor(np.stack([each.mean(0) for each in rows]), sizes, sets),
        )
    return _fitted[key]


def meta_regression(seen: Truth, others: Sequence[Truth]) -> Answer:
    """Accuracy of each concept and log mean margin from meta-features; ranks of pairs from the frozen shape."""
    if len({other.run.personas for other in others}) < 2:
        raise LookupError
    of_accuracy, of_size = fitted(others)
    rows = meta_features(seen)
    size = float(of_size.predict(rows.mean(0, keepdims=True))[0])
    return Answer(seen.shape(ALPHA), list(of_accuracy.predict(rows).clip(0, 1)), float(np.exp(size)))


def linearised(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The run's first-order expansion at the initial weights, trained; it costs more than the run."""
    if not linear_of(seen.run).is_file():
        raise LookupError
    return Answer(load_file(linear_of(seen.run))["heldout"].double())


BASELINES: dict[str, Method] = {
    "curves, least squares": curves,
    "curves, LC-PFN's prior": prior_fitted_curves,
    "meta-features": meta_regression,
    "linearised training": linearised,
}
