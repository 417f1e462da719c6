"""How close did one run come to another? Two trajectories side by side: per pair, per concept, along the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from margincast.errors import InputError
from margincast.foretold import Foretold, foretold
from margincast.intervals import Estimate, Values, bootstrap, proportion
from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.results import Json, Shown
from margincast.runs.load import Run, intervals_of
from margincast.runs.metrics import concept_rows


@dataclass(frozen=True)
class Agreement:
    """How margins `b` agree with margins `a` over the same pairs at one step. Intervals are 95%, over pairs."""

    pairs: int
    spearman: Estimate
    pearson: Estimate
    max_abs_difference: float
    mean_abs_difference: Estimate
    largest_margin: float
    accuracy_a: Estimate
    accuracy_b: Estimate
    margin_a: float
    margin_b: float

    def as_dict(self) -> Json:
        """Plain numbers under the contract's keys, intervals under `intervals`."""
        estimates = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        plain = {name: value for name, value in vars(self).items() if name not in estimates}
        values = {name: estimate.value for name, estimate in estimates.items()}
        return {**plain, **values, "intervals": {name: [e.low, e.high] for name, e in estimates.items()}}


@dataclass(frozen=True)
class Comparison(Shown):
    """Two trajectories cut to their common pairs and common steps, and their agreement at the last of these steps.

    trained and heldout: agreement over the common training and held-out pairs (None where there are none in common)
    foretold: of a forecast with intervals and a run, how the run came against them; else None
    """

    presenter: ClassVar[str] = "comparison"

    a: Trajectory
    b: Trajectory
    heldout: Agreement
    trained: Agreement | None
    concepts: dict[str, Agreement]
    foretold: Foretold | None = None


def compare(a: Trajectory | Run, b: Trajectory | Run, *twins: Trajectory | Run) -> Comparison:
    """Compare `b` with `a`, two forecasts or runs, on the pairs (same id and same text) and steps that both recorded.

    twins: of the run that a forecast with intervals is compared with: the same run in another batch order. Their
    differences are the floor of the forecast's score (`margincast.scores`)

    Raises `InputError` when there are no held-out pairs or no step after 0 in common, for twins without such a forecast
    and run, and for twins that did not record what the run did.
    """
    bands = intervals_of(a), intervals_of(b)
    a, b, *others = (each.trajectory if isinstance(each, Run) else each for each in (a, b, *twins))
    steps = sorted(set(a.steps) & set(b.steps))
    if not steps or steps[-1] == 0:
        raise InputError(
            f"the runs share no recorded step after 0 (steps {_span(a)} and {_span(b)}); rerun with the same eval_steps"
        )
    heldout_a, heldout_b = _common(a, b, "heldout", steps)
    if not len(heldout_a.pairs):
        raise InputError("the runs share no held-out pair; compare runs of the same data and the same seed")
    train_a, train_b = _common(a, b, "train", steps)
    rows = concept_rows(heldout_a.pairs)
    last_a, last_b = heldout_a.margins[-1], heldout_b.margins[-1]
    return Comparison(
        a=Trajectory(tuple(steps), train_a, heldout_a, a.beta, a.loss_type, a.origin),
        b=Trajectory(tuple(steps), train_b, heldout_b, b.beta, b.loss_type, b.origin),
        heldout=agreement(last_a, last_b),
        trained=agreement(train_a.margins[-1], train_b.margins[-1]) if len(train_a.pairs) else None,
        concepts={concept: agreement(last_a[index], last_b[index]) for concept, index in rows.items()},
        foretold=_foretold((a, b), bands, others, steps),
    )


def _foretold(
    runs: tuple[Trajectory, Trajectory], bands: tuple[Mapping[str, Tensor], ...], twins: Sequence[Trajectory],
    steps: list[int],
) -> Foretold | None:  # fmt: skip
    """How the one of `runs` that has no intervals came against the other's; None where not one of them has some."""
    forecasts = [side for side in range(2) if "band_margin" in bands[side]]
    if len(forecasts) != 1:
        if twins:
            raise InputError("twins are of a run that is compared with a forecast that has intervals; leave them out")
        return None
    forecast, run = runs[forecasts[0]], runs[1 - forecasts[0]]
    steps = [step for step in steps if step > 0]
    columns = [_common(forecast, run, "heldout", steps)[1]]
    for number, twin in enumerate(twins, 1):
        if not set(steps) <= set(twin.steps):
            raise InputError(f"twin {number} recorded other steps than the run ({_span(twin)} and {_span(run)})")
        found = _common(forecast, twin, "heldout", steps)[1]
        if found.pairs.fingerprint != columns[0].pairs.fingerprint:
            raise InputError(
                f"twin {number} has {len(found.pairs)} of the {len(columns[0].pairs)} held-out pairs that forecast and "
                "run have; train twins on the same split (--heldout FILE) with another --seed"
            )
        columns.append(found)
    at = [forecast.steps.index(step) for step in steps]
    return foretold(bands[forecasts[0]], at, steps, forecast.heldout, columns)


def agreement(a: Tensor, b: Tensor) -> Agreement:
    """Agreement of two (pairs,) vectors of margins. Correlations are nan where one of them does not vary."""
    left, right = a.double().cpu().numpy(), b.double().cpu().numpy()
    gap = np.abs(left - right)
    return Agreement(
        pairs=len(left),
        spearman=bootstrap(spearman, left, right),
        pearson=bootstrap(pearson, left, right),
        max_abs_difference=float(gap.max()),
        mean_abs_difference=bootstrap(lambda x: float(x.mean()), gap),
        largest_margin=float(max(np.abs(left).max(), np.abs(right).max())),
        accuracy_a=proportion(int((left > 0).sum()), len(left)),
        accuracy_b=proportion(int((right > 0).sum()), len(right)),
        margin_a=float(left.mean()),
        margin_b=float(right.mean()),
    )


def pearson(x: Values, y: Values) -> float:
    # Equal values minus their rounded mean leave rounding, which would correlate.
    if not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt(x @ x) * np.sqrt(y @ y))
    return float(x @ y) / scale if scale > 0 else float("nan")


def spearman(x: Values, y: Values) -> float:
    return pearson(rankdata(x), rankdata(y))


def _common(a: Trajectory, b: Trajectory, split: str, steps: list[int]) -> tuple[SplitTrajectory, SplitTrajectory]:
    left: SplitTrajectory = getattr(a, split)
    right: SplitTrajectory = getattr(b, split)
    place = {_identity(pair): index for index, pair in enumerate(right.pairs)}
    shared = [(i, place[_identity(pair)]) for i, pair in enumerate(left.pairs) if _identity(pair) in place]
    pairs = PairSet(tuple(left.pairs[i] for i, _ in shared))

    def cut(run: Trajectory, part: SplitTrajectory, side: int) -> SplitTrajectory:
        rows = [run.steps.index(step) for step in steps]
        columns = [both[side] for both in shared]
        chosen = None if part.chosen is None else part.chosen[rows][:, columns]
        return SplitTrajectory(pairs, part.margins[rows][:, columns], chosen)

    return cut(a, left, 0), cut(b, right, 1)


def _identity(pair: Any) -> tuple[str, str, str, str]:
    return pair.id, str(pair.prompt), str(pair.chosen), str(pair.rejected)


def _span(run: Trajectory) -> str:
    return ", ".join(map(str, run.steps[:6])) + (" …" if len(run.steps) > 6 else "")
