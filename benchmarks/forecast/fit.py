"""The constants of the effective model, from runs of the bank whose ends are known.

Exponents and factors by least squares in logarithms, held near priors with the weight of a few runs; the shape's alpha
and the trust in a rehearsal by rank correlation; noise from what runs differ by from forecasts made without their set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr
from torch import Tensor

from benchmarks.forecast.truth import RIDGE, Truth
from margincast.trained.amplitude import AmplitudeLaw
from margincast.trained.growth import GrowthLaw
from margincast.trained.laws import EffectiveForecast, Laws, PilotLaw, PilotMargins, ShapeLaw, effective_forecast
from margincast.trained.noise import LEVEL, Noise, learned, spread_of
from margincast.trained.offset import OffsetLaw
from margincast.trained.rehearsal_law import FLOOR, RehearsalLaw

HALVES = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0)
ALPHAS, RISES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), (0.0, 0.05, 0.1, 0.15)
RATES, GROWTHS = (0.15, 0.2, 0.3, 0.45, 0.6, 0.8), (0.0, 0.03, 0.1)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
ORDER = 0.1  # what a Spearman correlation of 1 less weighs, against all of the accuracy
EXPONENTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# What a handful of runs of early trials suggested, with the weight of `HOLD` runs.
HOLD = 0.3
AMPLITUDE_PRIOR = AmplitudeLaw(scale=1.0, length=1.0, pairs=0.5, spread=0.0, adapter=1.0)
BESIDE_PRIOR, POWER_PRIOR = replace(AMPLITUDE_PRIOR, length=0.5), 0.5  # beside a rehearsal, which has gone as far
NORMAL = float(norm.ppf(0.5 + LEVEL / 2))
QUIET = Noise(0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5)
NO_PILOT = PilotLaw(1.0, 1.0, 1.0)
Values = NDArray[np.float64]


def fit(runs: Sequence[Truth], rehearsed: bool) -> Laws:
    """The constants from `runs`, their noise from forecasts that leave the set of each run out."""
    laws = fit_means(runs, rehearsed)
    residuals = []
    for personas in {run.run.personas for run in runs}:
        rest = [run for run in runs if run.run.personas != personas]
        if rest:
            partial = fit_means(rest, rehearsed)
            residuals += [(run, apply(run, partial)) for run in runs if run.run.personas == personas]
    return replace(laws, noise=fit_noise(residuals, laws), pilot=fit_pilot(residuals))


def doubt(run: Truth, laws: Laws) -> float:
    return 1.0 if laws.rehearsal is None else laws.rehearsal.doubt(float(run.told_parts.rest.mean()))


def fit_means(runs: Sequence[Truth], rehearsed: bool) -> Laws:
    """Everything but noise and pilot."""
    key = frozenset(run.run.name for run in runs), rehearsed
    if key not in _fitted:
        _fitted[key] = _fit_means(runs, rehearsed)
    return _fitted[key]


_fitted: dict[tuple[frozenset[str], bool], Laws] = {}


def _fit_means(runs: Sequence[Truth], rehearsed: bool) -> Laws:
    amplitude = fit_amplitude(runs)
    laws = Laws(fit_offset(runs), amplitude, fit_growth(runs), fit_shape(runs), None, NO_PILOT, QUIET)
    if rehearsed:  # what is left at the end is the rehearsal's to say, whose batches have no order
        laws = replace(laws, offset=replace(laws.offset, left=0.0))
        return replace(laws, rehearsal=fit_rehearsal(runs, laws))
    return replace(laws, offset=replace(laws.offset, left=_left(runs, laws)))


def fit_shape(runs: Sequence[Truth]) -> ShapeLaw:
    def of(run: Truth, alpha: float) -> float:
        return float(run.kept(("alpha", alpha), lambda: mismatch(run, run.shape(alpha), run.end.rest)))

    def gap(law: ShapeLaw) -> float:
        return sum(of(run, law.of(run.amplitude)) for run in runs)

    return min((ShapeLaw(alpha, rise, RIDGE) for alpha in ALPHAS for rise in RISES), key=gap)


def mismatch(run: Truth, told: Tensor, true: Tensor) -> float:
    """Of margins of held-out pairs against true ones: accuracy per concept, and their order."""
    gaps = [abs(float((told[r] > 0).double().mean() - (true[r] > 0).double().mean())) for r in run.concepts]
    return float(np.mean(gaps)) + ORDER * (1.0 - _rank(told, true))


def held_least_squares(design: Values, target: Values, prior: Sequence[float], hold: float) -> Values:
    """Coefficients of a constant (free, first) and of columns that are held near `prior` by `hold` runs."""
    columns = np.concatenate([np.ones((len(design), 1)), design], axis=1)
    held = hold * np.diag([0.0, *np.ones(design.shape[1])])
    right = columns.T @ target + held @ np.array([0.0, *prior])
    found: Values = np.linalg.solve(columns.T @ columns + held, right)
    return found


def fit_amplitude(runs: Sequence[Truth]) -> AmplitudeLaw:
    return _amplitude(runs, AMPLITUDE_PRIOR, np.zeros((len(runs), 0)), [])[0]


def _amplitude(
    runs: Sequence[Truth], prior: AmplitudeLaw, more: Values, held: Sequence[float]
) -> tuple[AmplitudeLaw, list[float]]:
    """The law, and the exponents of `more` factors of A, (runs, factors) in logarithms and held near `held`."""
    rows = [[np.log(r.length), np.log(r.plan.pairs), np.log(r.spread), float(r.lora)] for r in runs]
    near = [prior.length, prior.pairs, prior.spread, np.log(prior.adapter), *held]
    design = np.concatenate([np.array(rows), more], axis=1)
    found = held_least_squares(design, np.log([run.amplitude for run in runs]), near, HOLD)
    scale, length, pairs, spread, adapter, *rest = map(float, found)
    return AmplitudeLaw(math.exp(scale), length, pairs, spread, math.exp(adapter)), rest


def fit_growth(runs: Sequence[Truth]) -> GrowthLaw:
    """log A(x) / A(1) over log x, against log A(1); every recorded step counts alike."""
    rows, targets = [], []
    for run in runs:
        for step, size in zip(run.steps, run.sizes, strict=True):
            x = step / run.run.steps
            if 0 < x < 1 and size > 0.05:
                rows.append([np.log(x), np.log(x) * np.log(run.amplitude)])
                targets.append(np.log(size / run.amplitude))
    power, slowing = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    return GrowthLaw(float(power), float(slowing))


def fit_offset(runs: Sequence[Truth]) -> OffsetLaw:
    """Least squares over the first half of all weights' runs, each by its own size; later offsets wander."""

    def gap(run: Truth, law: OffsetLaw) -> float:
        half = [index for index, step in enumerate(run.steps) if 0 < step <= run.run.steps / 2]
        path = run.offset_path(law)[[run.steps[index] for index in half]]
        true = run.part(run.truth[half]).shared
        return float((path - true).square().mean() / true.square().mean())

    def loss(law: OffsetLaw) -> float:
        return sum(of(run, law) for run in runs if not run.lora)

    def of(run: Truth, law: OffsetLaw) -> float:
        return float(run.kept(("gap", law), lambda: gap(run, law)))

    return min((OffsetLaw(rate, growth) for rate in RATES for growth in GROWTHS), key=loss)


def fit_rehearsal(runs: Sequence[Truth], laws: Laws) -> RehearsalLaw:
    reached = np.array([max(0.0, float(run.told_parts.rest.mean())) for run in runs])
    amplitude, (power,) = _amplitude(runs, BESIDE_PRIOR, np.log(reached + FLOOR)[:, None], [POWER_PRIOR])
    law = RehearsalLaw(amplitude, power, order=1.0, level=1.0, shared=0.0, own=0.0)

    def mixed(run: Truth, nats: float) -> tuple[Tensor, Tensor]:
        alpha, tried = laws.shape.of(run.amplitude), replace(law, order=nats, level=nats)
        key = "mixed", alpha, nats
        return run.kept(key, lambda: tried.mixed(run.told_parts.rest, run.shape(alpha), run.who.concepts))

    def disorder(nats: float) -> float:
        return -sum(_rank(mixed(run, nats)[0], run.end.rest) for run in runs)

    def missed(nats: float) -> float:
        return sum(miss(run, mixed(run, nats)[1]) for run in runs)

    return _offsets(runs, laws, replace(law, order=min(HALVES, key=disorder), level=min(HALVES, key=missed)))


def miss(run: Truth, shape: Tensor) -> float:
    """The mean over concepts of the error of the share of pairs that is learned."""
    return float((learned(shape, run.concepts) - learned(run.truth[-1], run.concepts)).abs().mean())


def _left(runs: Sequence[Truth], laws: Laws) -> float:
    """What ends have of the path that follows from the batch order: the part that orders pairs best."""

    def disorder(left: float) -> float:
        return -sum(_rank(rest + left * run.offset_path(laws.offset)[-1], run.truth[-1]) for run, rest in ends)

    ends = [(run, run.amplitude_by(laws) * run.shape(laws.shape.of(run.amplitude_by(laws)))) for run in runs]
    return min(SHARES, key=disorder)


def _offsets(runs: Sequence[Truth], laws: Laws, law: RehearsalLaw) -> RehearsalLaw:
    """`law` with the parts of a rehearsal's offsets that order pairs of the end best."""
    ends = []
    for run in runs:
        rest = run.told_parts.rest
        end = law.at(float(rest.mean()), run.plan.amplitude(law.amplitude, run.spread))
        ends.append((run, end * law.mixed(rest, run.shape(laws.shape.of(end)), run.who.concepts)[0]))

    def disorder(tried: RehearsalLaw) -> float:
        return -sum(_rank(rest + tried.offsets(run.told_parts, run.who.concepts), run.truth[-1]) for run, rest in ends)

    for _ in range(2):  # one after the other, twice: they hardly touch each other
        for name in ("shared", "own"):
            law = min((replace(law, **{name: share}) for share in SHARES), key=disorder)
    return law


def fit_noise(residuals: Sequence[tuple[Truth, EffectiveForecast]], laws: Laws) -> Noise:
    """What runs differ by from forecasts of them that had not seen their set."""
    ends, slopes, concepts, pairs, offsets = [], [], [], [], []
    for run, made in residuals:
        forecast_end = float(made.rest[-1].mean())
        doubted = doubt(run, laws)
        ends.append(np.log(run.amplitude / forecast_end) / doubted)
        for step, size, shared, own in zip(run.steps, run.sizes, run.parts.shared, run.parts.own, strict=True):
            told = float(made.rest[step].mean())
            if 0 < step < run.run.steps and size > 0.05:
                slopes.append((-np.log(step / run.run.steps), np.log(size / told) / doubted))
            if step > 0:
                gap = run.part(shared + own - made.shift[step])
                squares = float(gap.shared.square().mean()), float(gap.own.square().mean())
                offsets.append((run.lengths(step), *squares, len(run.run.concepts)))
        factor = run.amplitude / forecast_end
        for rows in run.concepts:
            mine, told = float(run.end.rest[rows].mean()), factor * float(made.rest[-1][rows].mean())
            if len(run.concepts) > 1:
                concepts.append(np.log(max(mine, 0.05 * run.amplitude) / max(told, 0.05 * run.amplitude)) / doubted)
        true, told = run.end.rest / run.amplitude - 1.0, made.rest[-1] / forecast_end - 1.0
        spread = float(told.square().mean())
        pairs.append((float((true * told).mean()) / spread, float(true.square().mean()) / spread))
    amplitude = _reach(ends)
    early = np.array(slopes)
    # |residual| of a normal is 0.8 of its deviation; at x it is amplitude + early (-log x).
    slope = max(0.0, float((np.abs(early[:, 1]) / 0.8 - amplitude) @ early[:, 0] / (early[:, 0] @ early[:, 0])))
    table = np.array(offsets)
    reach = max(0.0, float(np.polyfit(np.log(table[:, 0]), 0.5 * np.log(table[:, 1] + 1e-4), 1)[0]))
    several = table[table[:, 3] > 1]
    shared = float(np.sqrt(np.mean(table[:, 1] / table[:, 0] ** (2 * reach))))
    own = float(np.sqrt(np.mean(several[:, 2] / several[:, 0] ** (2 * reach)))) if len(several) else 0.0
    kept = float(np.mean([line[0] for line in pairs]))
    pair = float(np.sqrt(max(0.0, np.mean([line[1] for line in pairs]) - kept**2)))
    return Noise(amplitude, slope, _spread(concepts), pair, kept, *_accuracy_noise(residuals), shared, own, reach)


def _accuracy_noise(residuals: Sequence[tuple[Truth, EffectiveForecast]]) -> tuple[float, float, float]:
    """`Noise.accuracy`, `accuracy_early` and `common`, by the quantile that intervals are to reach: tails are heavy."""
    late, before, together = [], [], []
    for run, made in residuals:
        for step, margins in zip(run.steps[1:], run.truth[1:], strict=True):
            told, left = learned(made.rest[step] + made.shift[step], run.concepts), 1.0 - step / run.run.steps
            missed = ((learned(margins, run.concepts) - told) / spread_of(told)).tolist()
            if left > 0.0:
                before += [(left, abs(value)) for value in missed]
            else:
                late += missed
                together += [a * b for a, b in combinations(missed, 2)]
    end, table = _reach(late), np.array(before)
    early = float(np.quantile((table[:, 1] / NORMAL - end) / table[:, 0], LEVEL))
    common = float(np.mean(together)) / float(np.mean(np.square(late))) if together else 0.0
    return end, max(0.0, early), min(max(common, 0.0), 1.0)


def fit_pilot(residuals: Sequence[tuple[Truth, EffectiveForecast]]) -> PilotLaw:
    """The exponents by which what was seen on the way improves the end most, over all recorded steps."""

    def error(law: PilotLaw) -> float:
        total = 0.0
        for run, made in residuals:
            for step, margins in zip(run.steps, run.truth, strict=True):
                if 0 < step < run.run.steps:
                    end = run.correct(made, PilotMargins(margins, step), law)
                    gap = float((end.rest + end.shift)[-1].sub(run.truth[-1]).square().mean())
                    total += np.log(gap / float(run.truth[-1].square().mean()))
        return total

    best = NO_PILOT
    for name in ("amplitude", "offset", "shape"):  # one after the other: they hardly touch each other
        choices = [replace(best, **{name: value}) for value in EXPONENTS]
        best = min(choices, key=error)
    return best


def apply(run: Truth, laws: Laws) -> EffectiveForecast:
    """The forecast of `run` by `laws`, from its features, and from its rehearsal where the laws know what to make of
    it."""
    told = run.told if laws.rehearsal is not None else None
    path = run.offset_path(laws.offset)
    return effective_forecast(run.spectrum, path, run.who, run.plan, laws, told)


def _rank(left: Tensor, right: Tensor) -> float:
    return float(spearmanr(left.numpy(), right.numpy()).statistic)


def _reach(values: Sequence[float] | Values) -> float:
    """The deviation of a normal of which as much as intervals are to hold is as near to 0 as it is of `values`."""
    return float(np.quantile(np.abs(values), LEVEL)) / NORMAL


def _spread(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0
