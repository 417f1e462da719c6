"""Which constants fit runs that were trained? Those of every law, and how far forecasts of other data miss.

    constants = fit_constants([TrainedRun.from_folder(folder, "smollm2") for folder in folders])

Exponents and factors by least squares in logarithms, held near priors with the weight of a few runs; the shape's alpha
and the trust in a rehearsal by rank correlation; noise (`fit_noise`) from the error against runs left out of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from margincast.errors import InputError
from margincast.trained.amplitude import AmplitudeLaw
from margincast.trained.constants import Constants
from margincast.trained.fit_noise import NO_NOISE, NO_PILOT, fit_noise, fit_pilot
from margincast.trained.fit_run import RIDGE, FitRun, rank_correlation
from margincast.trained.growth import GrowthLaw
from margincast.trained.laws import Laws, ShapeLaw
from margincast.trained.noise import accuracies_of
from margincast.trained.offset import OffsetLaw
from margincast.trained.rehearsal_law import FLOOR, RehearsalLaw
from margincast.trained.trained_run import TrainedRun

TRUSTS = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0)  # nats
ALPHAS, RISES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), (0.0, 0.05, 0.1, 0.15)
RATES, GROWTHS = (0.15, 0.2, 0.3, 0.45, 0.6, 0.8), (0.0, 0.03, 0.1)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
ORDER = 0.1  # what a Spearman correlation of 1 less weighs, against all of the accuracy
SMALL = 0.05  # nats: smaller margins on the way are noise, and say nothing of growth
# What a handful of runs of early trials suggested, with the weight of `HOLD` runs.
HOLD = 0.3
AMPLITUDE_PRIOR = AmplitudeLaw(scale=1.0, length=1.0, pairs=0.5, spread=0.0, adapter=1.0)
BESIDE_PRIOR, POWER_PRIOR = replace(AMPLITUDE_PRIOR, length=0.5), 0.5  # beside a rehearsal, which has gone as far
Values = NDArray[np.float64]


def fit_constants(runs: Sequence[TrainedRun]) -> Constants:
    """The constants of forecasts of the model that `runs` trained.

    Runs differ in what forecasts are to cover: data, learning rate, steps, batch size, share of flipped labels. Where
    every run has a rehearsal, constants of forecasts beside one are fitted too. Means are fitted on all runs; intervals
    are as wide as the error against runs left out of the fit, those of the same data (`TrainedRun.data`) together.

    Raises `InputError` for runs of fewer than two data sets, of several models, and of which some are rehearsed only.
    """
    if len({run.data for run in runs}) < 2:
        raise InputError(
            f"{len(runs)} runs of {len({run.data for run in runs})} data sets: intervals are measured on data left out "
            "of the fit, so give runs of at least two (`data` names them)"
        )
    models = {run.features.model_hash: run.features.model for run in runs}
    if len(models) > 1:
        raise InputError(f"constants are of one model, and the runs are of {', '.join(sorted(models.values()))}")
    rehearsals = sum(run.rehearsal is not None for run in runs)
    if rehearsals not in (0, len(runs)):
        raise InputError(f"{rehearsals} of {len(runs)} runs have a rehearsal: rehearse all of them, or none")
    read = [FitRun(run) for run in runs]
    paths: dict[str, list[float]] = {}
    for run in read:
        paths.setdefault(run.trained.recipe.train, []).append(sum(run.plan.learning_rates))
    return Constants(
        f"{len(runs)} runs of {len({run.data for run in runs})} data sets, {', '.join(models.values())}",
        {kind: (_rounded(min(ends)), _rounded(max(ends))) for kind, ends in paths.items()},
        fit_laws(read, with_rehearsal=False),
        fit_laws(read, with_rehearsal=True) if rehearsals else None,
    )


def _rounded(path: float) -> float:
    return float(f"{path:.3g}")


def fit_laws(runs: Sequence[FitRun], with_rehearsal: bool) -> Laws:
    """The constants of `runs`, their noise from forecasts that leave the data of each run out."""
    laws = fit_means(runs, with_rehearsal)
    left_out = []
    for data in dict.fromkeys(run.data for run in runs):
        others = [run for run in runs if run.data != data]
        if others:
            means = fit_means(others, with_rehearsal)
            left_out += [(run, run.forecast(means)) for run in runs if run.data == data]
    return replace(laws, noise=fit_noise(left_out, laws), pilot=fit_pilot(left_out))


def fit_means(runs: Sequence[FitRun], with_rehearsal: bool) -> Laws:
    """Everything but noise and pilot."""
    amplitude, _ = fit_amplitude(runs, AMPLITUDE_PRIOR, np.zeros((len(runs), 0)), [])
    laws = Laws(fit_offset(runs), amplitude, fit_growth(runs), fit_shape(runs), None, NO_PILOT, NO_NOISE)
    if with_rehearsal:  # the offsets of the end are the rehearsal's to say, whose batches have no order
        laws = replace(laws, offset=replace(laws.offset, remaining=0.0))
        return replace(laws, rehearsal=fit_rehearsal(runs, laws))
    return replace(laws, offset=replace(laws.offset, remaining=fit_remaining(runs, laws)))


def fit_shape(runs: Sequence[FitRun]) -> ShapeLaw:
    """The alpha whose shapes have the accuracies, and the order of pairs, of the runs' ends."""

    def gap(run: FitRun, alpha: float) -> float:
        shape = run.shape(alpha)
        disorder = 1.0 - rank_correlation(shape, run.end.rest)
        return accuracy_error(run, shape, run.end.rest) + ORDER * disorder

    def total(law: ShapeLaw) -> float:
        alphas = [law.of(run.amplitude) for run in runs]
        return sum(
            float(run.known(("gap of shape", alpha), lambda: gap(run, alpha)))  # noqa: B023 (called here)
            for run, alpha in zip(runs, alphas, strict=True)
        )

    return min((ShapeLaw(alpha, rise, RIDGE) for alpha in ALPHAS for rise in RISES), key=total)


def accuracy_error(run: FitRun, margins: Tensor, true: Tensor) -> float:
    """The mean over concepts of how far the accuracies of `margins` are from those of `true`, (pairs,) each."""
    return float((accuracies_of(margins, run.groups) - accuracies_of(true, run.groups)).abs().mean())


def held_least_squares(design: Values, target: Values, prior: Sequence[float], hold: float) -> Values:
    """Coefficients of a constant (free, first) and of columns that are held near `prior` by `hold` runs."""
    columns = np.concatenate([np.ones((len(design), 1)), design], axis=1)
    held = hold * np.diag([0.0, *np.ones(design.shape[1])])
    right = columns.T @ target + held @ np.array([0.0, *prior])
    found: Values = np.linalg.solve(columns.T @ columns + held, right)
    return found


def fit_amplitude(
    runs: Sequence[FitRun], prior: AmplitudeLaw, factors: Values, near: Sequence[float]
) -> tuple[AmplitudeLaw, list[float]]:
    """The law of A, and the exponents of further factors of it, held near `near`.

    factors: (runs, factors), in logarithms
    """
    rows = [
        [np.log(run.length(run.max_steps)), np.log(run.plan.pairs), np.log(run.spread), float(run.lora)] for run in runs
    ]
    priors = [prior.length, prior.pairs, prior.spread, np.log(prior.adapter), *near]
    design = np.concatenate([np.array(rows), factors], axis=1)
    found = held_least_squares(design, np.log([run.amplitude for run in runs]), priors, HOLD)
    scale, length, pairs, spread, adapter, *exponents = map(float, found)
    return AmplitudeLaw(math.exp(scale), length, pairs, spread, math.exp(adapter)), exponents


def fit_growth(runs: Sequence[FitRun]) -> GrowthLaw:
    """log A(x) / A(1) over log x, against log A(1); every recorded step counts alike.

    Raises `InputError` where no run has margins on the way.
    """
    rows, targets = [], []
    for run in runs:
        for step, size in zip(run.steps, run.sizes, strict=True):
            x = run.length(step) / run.length(run.max_steps)
            if 0 < x < 1 and size > SMALL:
                rows.append([np.log(x), np.log(x) * np.log(run.amplitude)])
                targets.append(np.log(size / run.amplitude))
    if not rows:
        raise InputError(f"no run reaches margins of {SMALL} beta on the way to its end: train longer runs")
    power, slowing = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    return GrowthLaw(float(power), float(slowing))


def fit_offset(runs: Sequence[FitRun]) -> OffsetLaw:
    """Least squares over the first half of all weights' runs, each by its own size; later offsets wander.

    A rate of 0 where no run shows a shared offset: adapters, or pairs that all prefer the same token.
    """

    def half(run: FitRun) -> list[int]:
        return [index for index, step in enumerate(run.steps) if 0 < step <= run.max_steps / 2]

    def size(run: FitRun) -> float:
        rows = half(run)
        return float(run.part(run.margins[rows]).shared_offset.square().mean()) if rows else 0.0

    def gap(run: FitRun, law: OffsetLaw) -> float:
        rows = half(run)
        path = run.offset_path(law)[[run.steps[index] for index in rows]]
        true = run.part(run.margins[rows]).shared_offset
        return float((path - true).square().mean() / true.square().mean())

    def total(law: OffsetLaw) -> float:
        return sum(float(run.known(("gap of offset", law), lambda: gap(run, law))) for run in shown)  # noqa: B023

    shown = [run for run in runs if not run.lora and size(run) > 0.0]
    if not shown:
        return OffsetLaw(0.0, 0.0)
    return min((OffsetLaw(rate, growth) for rate in RATES for growth in GROWTHS), key=total)


def fit_remaining(runs: Sequence[FitRun], laws: Laws) -> float:
    """The part of the path that follows from the batch order that orders pairs of the end best."""
    ends = [(run, run.amplitude_by(laws) * run.shape(laws.shape.of(run.amplitude_by(laws)))) for run in runs]

    def disorder(part: float) -> float:
        return -sum(
            rank_correlation(rest + part * run.offset_path(laws.offset)[-1], run.margins[-1]) for run, rest in ends
        )

    return min(SHARES, key=disorder)


def fit_rehearsal(runs: Sequence[FitRun], laws: Laws) -> RehearsalLaw:
    """How far a rehearsal is trusted for the order of pairs, for accuracies, and for offsets."""
    reached = np.array([max(0.0, run.rehearsal_reached) for run in runs])
    amplitude, (power,) = fit_amplitude(runs, BESIDE_PRIOR, np.log(reached + FLOOR)[:, None], [POWER_PRIOR])
    law = RehearsalLaw(amplitude, power, 1.0, 1.0, shared_offset=0.0, concept_offset=0.0)

    def mixed(run: FitRun, nats: float) -> tuple[Tensor, Tensor]:
        alpha, tried = laws.shape.of(run.amplitude), replace(law, order_nats=nats, accuracy_nats=nats)
        shapes: tuple[Tensor, Tensor] = run.known(
            ("mixed", alpha, nats),
            lambda: tried.mixed(run.rehearsal_parts.rest, run.shape(alpha), run.responses.concepts),
        )
        return shapes

    def disorder(nats: float) -> float:
        return -sum(rank_correlation(mixed(run, nats)[0], run.end.rest) for run in runs)

    def inaccuracy(nats: float) -> float:
        return sum(accuracy_error(run, mixed(run, nats)[1], run.margins[-1]) for run in runs)

    law = replace(law, order_nats=min(TRUSTS, key=disorder), accuracy_nats=min(TRUSTS, key=inaccuracy))
    return fit_rehearsal_offsets(runs, laws, law)


def fit_rehearsal_offsets(runs: Sequence[FitRun], laws: Laws, law: RehearsalLaw) -> RehearsalLaw:
    """`law` with the parts of a rehearsal's offsets that order pairs of the end best."""
    ends = []
    for run in runs:
        rest = run.rehearsal_parts.rest
        end = law.at(float(rest.mean()), run.plan.amplitude(law.amplitude, run.spread))
        ends.append((run, end * law.mixed(rest, run.shape(laws.shape.of(end)), run.responses.concepts)[0]))

    def disorder(tried: RehearsalLaw) -> float:
        return -sum(
            rank_correlation(rest + tried.offsets(run.rehearsal_parts, run.responses.concepts), run.margins[-1])
            for run, rest in ends
        )

    for _ in range(2):  # one after the other, twice: they hardly touch each other
        law = min((replace(law, shared_offset=share) for share in SHARES), key=disorder)
        law = min((replace(law, concept_offset=share) for share in SHARES), key=disorder)
    return law
