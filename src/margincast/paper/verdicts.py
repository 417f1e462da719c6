"""Does what the paper says hold here? One record per claim: the number, its interval, what was compared. (Section 5)

Cosines: intervals from a bootstrap over personas. Curves: every seed gives a value, the interval is Student's over
seeds, and there is none with one seed.
A claim holds, or does not, where its whole interval says so; else it is undecided (`holds` None).

How a quantity y changes with K: the slope of y on log2 K over the mean of y, the relative change when K doubles. The
theory's rate: at fixed Q pairs per cluster, N = 2KQ and tau_1 = N tau log 3 / (10 Q beta^2) is proportional to K, so
that margins grow as K^-1: the slope of log y on log K is -1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import t as student
from torch import Tensor

from margincast.intervals import LEVEL, Estimate, Values, bootstrap
from margincast.paper.curves import QUANTITIES, Curves, chosen
from margincast.paper.embeddings import Cosines
from margincast.results import Json

# What "high" and "near zero" mean, which the paper leaves to the eye.
HIGH, NEAR_ZERO = 0.5, 0.1
# What a forecast of training all weights is to keep within, which is ours: of accuracy, and relative of the margin.
FORETOLD = {"accuracy": 0.03, "margin": 0.15}
SPLITS = {"train": "training", "heldout": "held-out"}
TRAINED = {"all": "all weights trained", "head": "unembedding trained"}
SLOWER = {"margin": "margins grow", "loss": "loss falls", "accuracy": "accuracy rises"}
THEORY = "theory: tau_1 = N tau log 3/(10 Q beta^2) with N = 2KQ, exponent -1"


@dataclass(frozen=True)
class Verdict:
    """A claim, judged: holds, does not, or undecided (None). `low` and `high` are the 95% interval of `value`."""

    claim: str
    holds: bool | None
    value: float
    low: float
    high: float
    compared: str

    def as_dict(self) -> Json:
        return asdict(self)


def cosine_verdicts(cosines: Cosines) -> list[Verdict]:
    """The shared component, and what is left between personas without it. None for fewer than two personas."""
    count = len(cosines.concepts)
    if count < 2:
        return []
    what = f"{cosines.figure}, {cosines.side} {cosines.input}s" + (
        ", norm applied twice" if cosines.double_norm else ""
    )
    over = f"{count * (count - 1) // 2} pairs of {count} personas ({what})"
    within = cosines.centred.diagonal()
    within = within.where(
        within > 0.0, float("nan")
    ).sqrt()  # a persona whose statements have nothing in common has no direction
    directions = (cosines.centred / (within[:, None] * within[None, :])).abs()
    raw = between(cosines.raw)
    centred = between(cosines.centred.abs())
    apart = between(directions)
    largest = float(off_diagonal(cosines.centred.abs()).max())
    return [
        _judged(
            f"shared component present ({what})",
            raw,
            _above(HIGH),
            f"mean cosine of embeddings, {over}, with {HIGH}",
        ),
        _judged(
            f"off-diagonal cosines near zero after centring ({what})",
            centred,
            _below(NEAR_ZERO),
            f"mean |cosine| of centred embeddings, {over}, with {NEAR_ZERO}; largest {largest:.3f}, on the diagonal "
            f"{float(cosines.centred.diagonal().mean()):.3f} on average",
        ),
        _judged(
            f"mean embeddings of personas orthogonal after centring ({what})",
            apart,
            _below(NEAR_ZERO),
            f"mean |C_ij|/sqrt(C_ii C_jj) of centred cosines C, {over}, with {NEAR_ZERO}: near zero beside what "
            "statements of one persona have in common",
        ),
    ]


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def between(matrix: Tensor) -> Estimate:
    """Mean over pairs of two different personas, with a bootstrap over personas."""
    values = matrix.double().numpy()

    def statistic(index: Values) -> float:
        drawn = index.astype(int)
        different = drawn[:, None] != drawn[None, :]
        return float(values[np.ix_(drawn, drawn)][different].mean()) if different.any() else float("nan")

    return bootstrap(statistic, np.arange(len(values), dtype=np.float64))


def condition_verdicts(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """The theorems' conditions, from `embeddings.condition_rows`."""
    return [
        Verdict(
            claim=f"condition of Theorems 4.1 and 4.2: {row['name']}",
            holds=row["holds"],
            value=row["left"],
            low=row["low"],
            high=row["high"],
            compared=f"left side, must be {row['relation']} {row['right']:.4g} ({row['data']})",
        )
        for row in rows
    ]


def curve_verdicts(curves: Sequence[Curves]) -> list[Verdict]:
    """Whether margin, loss and accuracy change more slowly with K, and how the rate compares with theory's."""
    verdicts = []
    for weights in TRAINED:
        runs = chosen(curves, weights, "training")
        if len(runs) > 1:
            verdicts += [_slower(runs, weights, split, name) for name in QUANTITIES for split in SPLITS]
            verdicts += [_ordered(runs, weights, split) for split in SPLITS]
            verdicts.append(_rate(runs, TRAINED[weights] + ", AdamW"))
    forecasts, runs = chosen(curves, "all", "forecast"), chosen(curves, "all", "training")
    if forecasts and runs:
        verdicts += [_foretold(runs, forecasts, name) for name in FORETOLD]
    flow = chosen(curves, "head", "forecast", "flow")
    if len(flow) > 1:
        verdicts.append(_rate(flow, "frozen backbone, gradient flow"))
    return verdicts


def theory_verdict(growth: Mapping[int, Sequence[float]], setting: str) -> Verdict:
    """The same exponent where the theory's own distribution was drawn; growth: by K, one value per draw."""
    estimate = _over_seeds({k: list(values) for k, values in growth.items()}, _exponent)
    return _judged(
        "margins grow at a rate proportional to Qβ²/N (simulated preference distribution)",
        estimate,
        # Draws differ by less than the theory's own corrections: a tenth is as near as it means to be.
        lambda e: e.low > -1.1 and e.high < -0.9,
        f"slope of log growth on log K, K={_list(growth)}, {setting}; {THEORY}",
    )


def _slower(runs: Mapping[int, Sequence[Curves]], weights: str, split: str, name: str) -> Verdict:
    change = {k: [progress(run, split, name) for run in by_seed] for k, by_seed in runs.items()}
    estimate = _over_seeds(change, _relative_slope)
    means = ", ".join(f"K={k}: {np.mean(values):.3g}" for k, values in change.items())
    return _judged(
        f"{SPLITS[split]} {SLOWER[name]} more slowly with more personas ({TRAINED[weights]})",
        estimate,
        _below(0.0),
        "relative change per doubling of K, with 0, of the change since step 0, mean over recorded steps; " + means,
    )


def _ordered(runs: Mapping[int, Sequence[Curves]], weights: str, split: str) -> Verdict:
    """Whether the margin at the last step falls from each K to the next: the neighbours where it falls least."""
    last = {k: [getattr(run, split)["margin"][-1] for run in by_seed] for k, by_seed in runs.items()}
    means = {k: float(np.mean(values)) for k, values in last.items()}
    a, b = max(pairwise(means), key=lambda pair: means[pair[1]] - means[pair[0]])
    step = next(iter(runs.values()))[0].steps[-1]
    listed = ", ".join(f"K={k}: {value:.3g}" for k, value in means.items())
    wrong = [f"K={a} to K={b}" for a, b in pairwise(means) if means[b] >= means[a]]
    return _judged(
        f"{SPLITS[split]} margin at step {step} falls from each K to the next ({TRAINED[weights]})",
        _over_seeds({a: last[a], b: last[b]}, lambda ks, values: float(values[1] - values[0])),
        _below(0.0),
        f"change from K={a} to K={b}, of {len(means) - 1} neighbours those where it falls least, with 0; {listed}; on "
        "the mean over seeds it " + (f"does not fall from {', '.join(wrong)}" if wrong else "falls everywhere"),
    )


def _foretold(runs: Mapping[int, Sequence[Curves]], forecasts: Mapping[int, Sequence[Curves]], name: str) -> Verdict:
    """How far the forecast of a run's end was from it, in held-out accuracy or, relative to it, margin."""

    def missed(forecast: Curves, true: Curves) -> float:
        expected, real = forecast.heldout[name][-1], true.heldout[name][-1]
        if name == "accuracy":
            return abs(expected - real)
        return abs(expected / real - 1.0) if real else float("nan")

    errors = {k: [missed(*pair) for pair in zip(forecasts[k], runs[k], strict=True)] for k in runs if k in forecasts}
    limit = FORETOLD[name]
    means = ", ".join(f"K={k}: {np.mean(values):.2g}" for k, values in errors.items())
    return _judged(
        f"held-out {name} at the last step is forecast within {limit:.0%} ({TRAINED['all']})",
        _over_seeds(errors, lambda ks, values: float(values.mean())),
        _below(limit),
        f"mean error over K of the forecast made without this run, {'absolute' if name == 'accuracy' else 'relative'}, "
        f"with {limit:g}; {means}",
    )


def _rate(runs: Mapping[int, Sequence[Curves]], what: str) -> Verdict:
    growth = {k: [progress(run, "train", "margin") for run in by_seed] for k, by_seed in runs.items()}
    return _judged(
        f"training margins grow at a rate proportional to Qβ²/N ({what})",
        _over_seeds(growth, _exponent),
        _about_minus_one,
        f"slope of log mean margin on log K, K={_list(runs)}; {THEORY}, for concepts that share no token (these do)",
    )


def progress(run: Curves, split: str, name: str) -> float:
    """The mean over the recorded steps after step 0 of how far the quantity has come since step 0."""
    values = np.array(getattr(run, split)[name])
    sign = -1.0 if name == "loss" else 1.0
    return float(sign * (values[1:] - values[0]).mean())


def _over_seeds(by_k: Mapping[int, Sequence[float]], statistic: Callable[[Values, Values], float]) -> Estimate:
    """`statistic` of K and the values at K for every seed; the mean and Student's interval over seeds."""
    ks = np.array(list(by_k), dtype=np.float64)
    seeds = min(map(len, by_k.values()))
    each = np.array([statistic(ks, np.array([values[s] for values in by_k.values()])) for s in range(seeds)])
    mean = float(each.mean())
    if seeds < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(student.ppf(0.5 + LEVEL / 2, seeds - 1) * each.std(ddof=1) / np.sqrt(seeds))
    return Estimate(mean, mean - half, mean + half)


def _relative_slope(ks: Values, values: Values) -> float:
    return float(np.polyfit(np.log2(ks), values, 1)[0] / values.mean())


def _exponent(ks: Values, values: Values) -> float:
    return float(np.polyfit(np.log(ks), np.log(values), 1)[0]) if bool((values > 0).all()) else float("nan")


Test = Callable[[Estimate], bool | None]


def _judged(claim: str, estimate: Estimate, test: Test, compared: str) -> Verdict:
    known = not np.isnan([estimate.low, estimate.high]).any()
    return Verdict(claim, test(estimate) if known else None, estimate.value, estimate.low, estimate.high, compared)


def _below(limit: float) -> Test:
    return lambda e: True if e.high < limit else False if e.low >= limit else None


def _above(limit: float) -> Test:
    return lambda e: True if e.low > limit else False if e.high <= limit else None


def _about_minus_one(estimate: Estimate) -> bool | None:
    """Whether the exponent may be -1; undecided where it may be 0 as well, no dependence at all."""
    if not estimate.low <= -1.0 <= estimate.high:
        return False
    return True if estimate.high < 0.0 else None


def _list(ks: Mapping[int, Any]) -> str:
    return ",".join(map(str, ks))
