"""How far do forecasts miss runs that their constants do not know? The noise, and what a pilot is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from margincast.trained.fit_run import FitRun
from margincast.trained.laws import EffectiveForecast, Laws, PilotLaw, PilotMargins
from margincast.trained.noise import COVERAGE, Noise, accuracies_of, binomial_deviation

EXPONENTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SMALL = 0.05  # nats, and a share of a run's amplitude: less is noise
SQUARE = 1e-4  # nats squared that are added to offsets before logarithms
NORMAL = float(norm.ppf(0.5 + COVERAGE / 2))
MEAN_SIZE = 0.8  # of a normal over its standard deviation, sqrt(2 / pi)
NO_NOISE = Noise(0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5)
NO_PILOT = PilotLaw(1.0, 1.0, 1.0)
Values = NDArray[np.float64]
LeftOut = Sequence[tuple[FitRun, EffectiveForecast]]  # runs, each with a forecast whose constants do not know its data


def fit_noise(left_out: LeftOut, laws: Laws) -> Noise:
    """What runs differ by from forecasts whose constants do not know their data."""
    amplitude, early = _amplitude_noise(left_out, laws)
    pair, pair_slope = _pair_noise(left_out)
    concept = _deviation(_concept_errors(left_out, laws))
    return Noise(amplitude, early, concept, pair, pair_slope, *_accuracy_noise(left_out), *_offset_noise(left_out))


def _size(rest: Tensor) -> float:
    """The mean margin of a forecast, which has a logarithm however wrong the forecast is."""
    return max(SMALL, float(rest.mean()))


def _doubt(run: FitRun, laws: Laws) -> float:
    return 1.0 if laws.rehearsal is None else laws.rehearsal.doubt(run.rehearsal_reached)


def _amplitude_noise(left_out: LeftOut, laws: Laws) -> tuple[float, float]:
    """`Noise.amplitude` and `amplitude_early`."""
    ends, slopes = [], []
    for run, forecast in left_out:
        doubt, end = _doubt(run, laws), _size(forecast.rest[-1])
        ends.append(np.log(run.amplitude / end) / doubt)
        for step, size in zip(run.steps, run.sizes, strict=True):
            x = run.length(step) / run.length(run.max_steps)
            if 0 < x < 1 and size > SMALL:
                slopes.append((-np.log(x), np.log(size / _size(forecast.rest[step])) / doubt))
    amplitude, early = _normal_deviation(ends), np.array(slopes).reshape(-1, 2)
    if not len(early):
        return amplitude, 0.0
    # |error| of a normal is 0.8 of its deviation; at x it is amplitude + early (-log x).
    slope = float((np.abs(early[:, 1]) / MEAN_SIZE - amplitude) @ early[:, 0] / (early[:, 0] @ early[:, 0]))
    return amplitude, max(0.0, slope)


def _concept_errors(left_out: LeftOut, laws: Laws) -> list[float]:
    """Of log A of every concept, the forecast scaled to the run's own A."""
    errors = []
    for run, forecast in left_out:
        factor, least = run.amplitude / _size(forecast.rest[-1]), SMALL * run.amplitude
        for rows in run.groups:
            true, expected = float(run.end.rest[rows].mean()), factor * float(forecast.rest[-1][rows].mean())
            if len(run.groups) > 1:
                errors.append(np.log(max(true, least) / max(expected, least)) / _doubt(run, laws))
    return errors


def _pair_noise(left_out: LeftOut) -> tuple[float, float]:
    """`Noise.pair` and `pair_slope`: the run's pairs regressed on the forecast's, and what is left."""
    slopes, squares = [], []
    for run, forecast in left_out:
        true = run.end.rest / run.amplitude - 1.0
        expected = forecast.rest[-1] / _size(forecast.rest[-1]) - 1.0
        spread = float(expected.square().mean())
        if spread > 0.0:
            slopes.append(float((true * expected).mean()) / spread)
            squares.append(float(true.square().mean()) / spread)
    if not slopes:
        return 0.0, 1.0
    slope = float(np.mean(slopes))
    return math.sqrt(max(0.0, float(np.mean(squares)) - slope**2)), slope


def _offset_noise(left_out: LeftOut) -> tuple[float, float, float]:
    """`Noise.shared_offset`, `concept_offset` and `offset_power`."""
    rows = []
    for run, forecast in left_out:
        for index, step in enumerate(run.steps):
            if step > 0:
                gap = run.part(run.parts.shift[index] - forecast.shift[step])
                squares = float(gap.shared_offset.square().mean()), float(gap.concept_offset.square().mean())
                rows.append((run.length(step), *squares, len(run.groups)))
    lengths, shared, concept, groups = np.array(rows).T
    power = max(0.0, float(np.polyfit(np.log(lengths), 0.5 * np.log(shared + SQUARE), 1)[0]))
    several, scale = groups > 1, lengths ** (2 * power)
    concept_offset = float(np.sqrt(np.mean((concept / scale)[several]))) if several.any() else 0.0
    return float(np.sqrt(np.mean(shared / scale))), concept_offset, power


def _accuracy_noise(left_out: LeftOut) -> tuple[float, float, float]:
    """`Noise.accuracy`, `accuracy_early` and `accuracy_correlation`, by the quantile that intervals are to reach: tails
    are heavy."""
    late, before, together = [], [], []
    for run, forecast in left_out:
        for step, margins in zip(run.steps[1:], run.margins[1:], strict=True):
            expected = accuracies_of(forecast.rest[step] + forecast.shift[step], run.groups)
            errors = (accuracies_of(margins, run.groups) - expected) / binomial_deviation(expected)
            remaining = 1.0 - run.length(step) / run.length(run.max_steps)
            if step < run.max_steps:
                before += [(remaining, abs(error)) for error in errors.tolist()]
            else:
                late += errors.tolist()
                together += [a * b for a, b in combinations(errors.tolist(), 2)]
    end, table = _normal_deviation(late), np.array(before)
    early = float(np.quantile((table[:, 1] / NORMAL - end) / table[:, 0], COVERAGE))
    square = float(np.mean(np.square(late)))
    correlation = float(np.mean(together)) / square if together and square > 0.0 else 0.0
    return end, max(0.0, early), min(max(correlation, 0.0), 1.0)


def fit_pilot(left_out: LeftOut) -> PilotLaw:
    """The exponents by which what was recorded on the way improves the end most, over all recorded steps."""

    def error(law: PilotLaw) -> float:
        total = 0.0
        for run, forecast in left_out:
            for step, margins in zip(run.steps, run.margins, strict=True):
                if 0 < step < run.max_steps:
                    end = run.corrected(forecast, PilotMargins(margins, step), law)
                    gap = float((end.rest + end.shift)[-1].sub(run.margins[-1]).square().mean())
                    total += np.log(gap / float(run.margins[-1].square().mean()))
        return total

    best = NO_PILOT
    for name in ("amplitude", "offset", "shape"):  # one after the other: they hardly touch each other
        choices = [replace(best, **{name: value}) for value in EXPONENTS]
        best = min(choices, key=error)
    return best


def _normal_deviation(values: Sequence[float] | Values) -> float:
    """The deviation of a normal of which as much as intervals are to hold is as near to 0 as it is of `values`."""
    return float(np.quantile(np.abs(values), COVERAGE)) / NORMAL


def _deviation(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0
