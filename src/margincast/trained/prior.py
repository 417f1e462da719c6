"""What do a few runs change in constants that many runs of another model gave? A hierarchical fit.

Log A of run i of data set g, with columns x of its amplitude law (logarithms of path length, pairs, spread, adapter,
and of how far a rehearsal got):

    log A_i = theta_0 + x_i . theta + u_g + e_i,      theta_k ~ N(package's, width_k^2),  u ~ N(0, between^2),
                                                                                          e ~ N(0, within^2)

The widths are how far the package's own constants move when data sets are left out of its fit (jackknife); that of the
scale is the spread between data sets. The constants are the mode of the posterior; growth alike. What a grid is
searched for moves to the runs' own by n / (n + n_0): the new data sets count as n among the n_0 of the package. Noise
is pooled the same way, in squares. Without runs all of it is the package's. docs/calibrating.md has the derivation.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np

from margincast.trained.amplitude import AmplitudeLaw
from margincast.trained.constants import POSITIVE
from margincast.trained.fit import SMALL, Values, fit_offset, fit_rehearsal, fit_remaining, fit_shape
from margincast.trained.fit_noise import fit_noise, fit_pilot
from margincast.trained.fit_run import FitRun
from margincast.trained.growth import GrowthLaw
from margincast.trained.laws import EffectiveForecast, Laws
from margincast.trained.noise import Noise
from margincast.trained.rehearsal_law import FLOOR

T = TypeVar("T")
TYPICAL, TYPICAL_REACHED = (60.0, 1920.0), 10.0  # path length and pairs of most runs of the bank; nats of a rehearsal


@dataclass(frozen=True)
class Widths:
    """Standard deviations of an amplitude law in the prior.

    between, within: of log A, of data sets and of the runs of one;  the others: of the exponents, and of log adapter
    """

    between: float
    within: float
    length: float
    pairs: float
    spread: float
    adapter: float
    power: float


@dataclass(frozen=True)
class Prior:
    """alone, beside: of forecasts from features, and beside a rehearsal;  power, slowing: widths of the growth law
    rehearsal_mean, rehearsal_deviation: of log A less log(R + 2) in the package's runs;  sets: its data sets
    """

    alone: Widths
    beside: Widths
    power: float
    slowing: float
    rehearsal_mean: float
    rehearsal_deviation: float
    sets: float


@cache
def package_prior() -> Prior:
    """That of the package's bank, as `python -m benchmarks.forecast.prior --write` leaves it."""
    values = json.loads(files("margincast.trained").joinpath("prior.json").read_text("utf-8"))
    growth, rehearsal = values["growth"], values["rehearsal"]
    return Prior(
        Widths(**values["alone"]), Widths(**values["beside"]), growth["power"], growth["slowing"],
        rehearsal["mean"], rehearsal["deviation"], values["weight"]["sets"],
    )  # fmt: skip


def laws_with_prior(runs: Sequence[FitRun], package: Laws) -> Laws:
    """`package` after `runs`, noise and pilot from forecasts that leave the data of each run out, or, of one data set,
    each run."""
    if not runs:
        return package
    laws = means_with_prior(runs, package)
    left_out = left_out_of(runs, package, means_with_prior)
    share = share_of(runs)
    measured = fit_noise([(run, forecast) for run, forecast, _ in left_out], laws)
    pilot = fit_pilot([(run, forecast) for run, forecast, _ in left_out])
    return replace(laws, noise=pooled(package.noise, measured, share), pilot=moved(package.pilot, pilot, share))


def left_out_of(
    runs: Sequence[FitRun], package: Laws, fit: Callable[[Sequence[FitRun], Laws], Laws]
) -> list[tuple[FitRun, EffectiveForecast, Laws]]:
    """Every run with its forecast by laws that do not know its data, of one data set not the run, and these laws.

    fit: of the other runs, `means_with_prior`, whose noise is the package's, or `laws_with_prior`
    """
    several = len({run.data for run in runs}) > 1
    found, known = [], dict[str, Laws]()
    for number, run in enumerate(runs):
        name = run.data if several else str(number)
        if name not in known:
            others = [other for other in runs if (other.data != run.data if several else other is not run)]
            known[name] = fit(others, package)
        found.append((run, run.forecast(known[name]), known[name]))
    return found


def share_of(runs: Sequence[FitRun]) -> float:
    """n / (n + n_0), n the data sets of `runs`; the runs of one count as more than one by what differs within it."""
    prior = package_prior().beside
    alike = prior.between**2 / (prior.between**2 + prior.within**2)
    effective = sum(count / (1.0 + (count - 1) * alike) for count in Counter(run.data for run in runs).values())
    return effective / (effective + package_prior().sets)


def means_with_prior(runs: Sequence[FitRun], package: Laws) -> Laws:
    """Everything but noise and pilot, which stay the package's."""
    if not runs:
        return package
    share, prior = share_of(runs), package_prior()
    offset = package.offset
    if any(not run.lora for run in runs):
        offset = moved(package.offset, replace(fit_offset(runs), remaining=package.offset.remaining), share)
    laws = replace(
        package,
        offset=offset,
        amplitude=_amplitude(runs, package.amplitude, prior.alone),
        growth=_growth(runs, package.growth, prior),
        shape=moved(package.shape, fit_shape(runs), share),
    )
    if package.rehearsal is None:
        remaining = package.offset.remaining + share * (fit_remaining(runs, laws) - package.offset.remaining)
        return replace(laws, offset=replace(laws.offset, remaining=remaining))
    reached = np.log([max(0.0, run.rehearsal_reached) + FLOOR for run in runs])
    theta = np.array([*_theta(package.rehearsal.amplitude), package.rehearsal.power])
    found = _mode(runs, reached[:, None], theta, prior.beside)
    rehearsal = moved(package.rehearsal, fit_rehearsal(runs, laws), share)
    return replace(laws, rehearsal=replace(rehearsal, amplitude=_law(found), power=max(0.05, float(found[5]))))


def _theta(law: AmplitudeLaw) -> list[float]:
    return [math.log(law.scale), law.length, law.pairs, law.spread, math.log(law.adapter)]


def _law(theta: Values) -> AmplitudeLaw:
    scale, length, pairs, spread, adapter = map(float, theta[:5])
    return AmplitudeLaw(math.exp(scale), length, pairs, spread, math.exp(adapter))


def _amplitude(runs: Sequence[FitRun], package: AmplitudeLaw, widths: Widths) -> AmplitudeLaw:
    return _law(_mode(runs, np.zeros((len(runs), 0)), np.array(_theta(package)), widths))


def _mode(runs: Sequence[FitRun], further: Values, theta: Values, widths: Widths) -> Values:
    """The posterior mode of an amplitude law's logarithms and exponents; further: (runs, factors), in logarithms.

    Deviations from the prior solve (X' S^-1 X + W^-2) d = X' S^-1 (y - X theta), S the covariance of log A: `within`
    on the diagonal, `between` for runs of one data set.
    """
    rows = [
        [1.0, np.log(run.length(run.max_steps)), np.log(run.plan.pairs), np.log(run.spread), float(run.lora)]
        for run in runs
    ]
    table = np.concatenate([np.array(rows), further], axis=1)
    alike = np.array([[one.data == other.data for other in runs] for one in runs], dtype=float)
    inverse = np.linalg.inv(widths.between**2 * alike + widths.within**2 * np.eye(len(runs)))
    width = [widths.between, widths.length, widths.pairs, widths.spread, widths.adapter, widths.power]
    # The widths are of deviations at the package's typical run: exponents move the law around it, not around 1.
    about = np.eye(table.shape[1])
    about[0, 1 : len(TYPICAL) + 1] = np.log(TYPICAL)
    about[0, 5:] = np.log(TYPICAL_REACHED + FLOOR)
    precision = about.T @ np.diag(1.0 / np.square(width[: table.shape[1]])) @ about
    gaps = np.log([run.amplitude for run in runs]) - table @ theta
    moved_by: Values = np.linalg.solve(table.T @ inverse @ table + precision, table.T @ inverse @ gaps)
    return theta + moved_by


def _growth(runs: Sequence[FitRun], package: GrowthLaw, prior: Prior) -> GrowthLaw:
    """The same for log A(x) / A(1) on the way, whose recorded steps count as one: they are of one run."""
    left, right = np.diag([prior.power**-2, prior.slowing**-2]), np.zeros(2)
    for run in runs:
        points = []
        for step, size in zip(run.steps, run.sizes, strict=True):
            x = run.length(step) / run.length(run.max_steps)
            if 0 < x < 1 and size > SMALL:
                points.append((np.log(x), np.log(x) * np.log(run.amplitude), np.log(size / run.amplitude)))
        if points:
            table = np.array(points)
            gap = table[:, 2] - table[:, :2] @ np.array([package.power, package.slowing])
            scale = len(points) * (prior.power * float(np.abs(table[:, 0]).mean())) ** 2
            left = left + table[:, :2].T @ table[:, :2] / scale
            right = right + table[:, :2].T @ gap / scale
    power, slowing = np.array([package.power, package.slowing]) + np.linalg.solve(left, right)
    return GrowthLaw(float(power), float(slowing))


def moved(package: T, own: T, share: float) -> T:
    """`package`, moved to `own` by `share`; in logarithms what is positive by its meaning."""
    values: dict[str, Any] = {}
    for each in fields(package):  # type: ignore[arg-type]
        old, new = getattr(package, each.name), getattr(own, each.name)
        if is_dataclass(old):
            values[each.name] = moved(old, new, share)
        elif each.name in POSITIVE:
            values[each.name] = old ** (1.0 - share) * new**share
        else:
            values[each.name] = old + share * (new - old)
    return type(package)(**values)


def pooled(package: Noise, own: Noise, share: float) -> Noise:
    """Deviations pooled in squares; slope, correlation and power as they are."""
    plain = ("pair_slope", "accuracy_correlation", "offset_power")
    values = {}
    for each in fields(Noise):
        old, new = getattr(package, each.name), getattr(own, each.name)
        linear = old + share * (new - old)
        values[each.name] = linear if each.name in plain else math.sqrt((1.0 - share) * old**2 + share * new**2)
    return Noise(**values)
