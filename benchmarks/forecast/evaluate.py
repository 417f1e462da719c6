"""How good are forecasts of full fine-tuning? Every method on every run of the bank, its constants from other sets.

    MARGINCAST_PERSONA_DIR=... python -m benchmarks.forecast.evaluate [--apart] [--runs] [--write]

Constants are fitted on the runs of all other persona sets (leave one set out); with `--apart` on all sets that are not
apart, and tested on those that are; only runs of batches of at least 16 are fitted on. Printed for each method: the error of held-out accuracy per concept at the end, the
error of the mean margin, Spearman's correlation of the margins of pairs with and without their offsets, and how often
the 90% intervals of accuracy and mean margin hold the truth. `--write` fits the constants that `margincast forecast`
uses, on all sets that are not apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.forecast.fit import apply, doubt, drawn_ends, fit
from benchmarks.forecast.truth import Truth, every
from margincast.dynamics.pairspace import choose_form, simulate_in
from margincast.effective.laws import Laws, as_values
from margincast.effective.noise import LEVEL, accuracies, interval
from margincast.effective.offset import Parts
from margincast.intervals import Estimate

ENOUGH = 16  # pairs of a batch: rehearsals of smaller ones have too few steps to fit constants on


@dataclass(frozen=True)
class Answer:
    """A forecast of the end, over beta.

    margins: (pairs,);  accuracy: of every concept, where it is not that of `margins`;  mean: margin, likewise
    """

    margins: Tensor
    accuracy: Sequence[Estimate] | None = None
    mean: Estimate | None = None


Method = Callable[[Truth, Sequence[Truth]], Answer]


def persistence(seen: Truth, others: Sequence[Truth]) -> Answer:
    return Answer(seen.pilot.margins)


def power_law(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The pilot's margins times what pilots of other runs grew by, as a power of the steps."""
    growth = [
        np.log(max(1e-3, float(other.truth[-1].mean())) / max(1e-3, float(other.pilot.margins.mean())))
        / np.log(other.run.steps / other.run.pilot)
        for other in others
    ]
    return Answer(seen.pilot.margins * (seen.run.steps / seen.run.pilot) ** float(np.median(growth)))


def frozen(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The exact run of the unembedding alone, same optimizer and batches."""
    train, heldout = seen.spaces
    plan = seen.plan
    form = choose_form(train, plan.optimizer, seen.run.steps, seen.run.batch, plan.loss)
    states = simulate_in(
        form, train, plan.optimizer, plan.batches, unembedding=train.zeros(), loss=plan.loss, factor=lambda _: 1.0,
        max_grad_norm=1.0,
    )  # fmt: skip
    return Answer(heldout.margins(list(states)[-1]) / seen.run.beta)


def probe(seen: Truth, others: Sequence[Truth]) -> Answer:
    """Ridge regression on frozen features, its size from other runs."""
    shape = seen.spectrum.shape(1.0, 3e-3)
    size = float(np.median([float(other.truth[-1].mean()) for other in others]))
    return Answer(shape / shape.mean() * size)


def floor(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The same run with another batch order. It is no forecast: it has seen the run's end."""
    for other in every_run():
        if other is not seen and replace(other.run, name="", seed=0) == replace(seen.run, name="", seed=0):
            return Answer(other.truth[-1])
    raise LookupError


def features_only(seen: Truth, others: Sequence[Truth]) -> Answer:
    return _ours(seen, fit(others, rehearsed=False))


def with_rehearsal(seen: Truth, others: Sequence[Truth]) -> Answer:
    return _ours(seen, fit(others, rehearsed=True))


def rehearsal_alone(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The margins of the rehearsal as they are."""
    return Answer(seen.told)


def _ours(seen: Truth, laws: Laws) -> Answer:
    made = apply(seen, laws)
    noise = laws.noise.times(doubt(seen, laws))
    draws = drawn_ends(seen, made, noise)
    margins = made.rest[-1] + made.shift[-1]
    return Answer(
        margins, [interval(accuracies(draws, rows, noise.points)) for rows in seen.concepts], interval(draws.mean(1))
    )


METHODS: dict[str, Method] = {
    "persistence (pilot)": persistence,
    "power law (pilot)": power_law,
    "frozen flow": frozen,
    "ridge probe": probe,
    "rehearsal as it is": rehearsal_alone,
    "ours, features only": features_only,
    "ours, rehearsal of 10%": with_rehearsal,
    "floor: other seed": floor,
}

_every: list[Truth] = []


def every_run() -> list[Truth]:
    if not _every:
        _every.extend(every())
    return _every


def score(seen: Truth, answer: Answer) -> dict[str, list[float]]:
    """Errors of one answer. Accuracies in points; coverage as 0 and 1."""
    truth = seen.truth[-1]
    told, true = seen.part(answer.margins), seen.end
    mean = float(answer.margins.mean()) if answer.mean is None else answer.mean.value
    truths = [float((truth[rows] > 0).double().mean()) for rows in seen.concepts]
    plain = [float((answer.margins[rows] > 0).double().mean()) for rows in seen.concepts]
    forecast = plain if answer.accuracy is None else [one.value for one in answer.accuracy]
    result = {
        "accuracy": [100 * (f - t) for f, t in zip(forecast, truths, strict=True)],
        "plain": [100 * (f - t) for f, t in zip(plain, truths, strict=True)],
        "margin": [mean / float(truth.mean()) - 1],
        "rank": [_rank(answer.margins, truth)],
        "rank_rest": [_rank(_without_shared(told), _without_shared(true))],
    }
    if answer.accuracy is not None:
        result["cover_accuracy"] = [
            float(s.low - 1e-9 <= t <= s.high + 1e-9) for s, t in zip(answer.accuracy, truths, strict=True)
        ]
        result["width"] = [100 * (s.high - s.low) for s in answer.accuracy]
    if answer.mean is not None:
        result["cover_margin"] = [float(answer.mean.low <= float(truth.mean()) <= answer.mean.high)]
    return result


def _without_shared(parts: Parts) -> Tensor:
    return parts.rest + parts.own


def _rank(left: Tensor, right: Tensor) -> float:
    return float(spearmanr(left.numpy(), right.numpy()).statistic)


def write_constants(runs: Sequence[Truth]) -> Path:
    """Fit the constants of the package on `runs`."""
    path = Path(str(files("margincast.effective").joinpath("constants.json")))
    values = {
        "fitted_on": f"{len(runs)} runs of {len({run.run.personas for run in runs})} sets of personas, SmolLM2",
        "features": as_values(fit(runs, rehearsed=False)),
        "rehearsed": as_values(fit(runs, rehearsed=True)),
    }
    path.write_text(json.dumps(values, indent=2) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.evaluate", description=__doc__)
    parser.add_argument("--apart", action="store_true", help="test on the sets that were put apart")
    parser.add_argument("--runs", action="store_true", help="a line for every run too")
    parser.add_argument("--size", type=int, default=0, help="only runs of at least this batch size")
    parser.add_argument("--write", action="store_true", help="fit the constants of the package")
    arguments = parser.parse_args()
    open_runs = [seen for seen in every_run() if not seen.run.apart and seen.run.batch >= ENOUGH]
    if arguments.write:
        print(f"wrote {write_constants(open_runs).name}")
        return
    chosen = [s for s in every_run() if s.run.apart == arguments.apart and s.run.batch >= arguments.size]
    sets = {seen.run.personas for seen in open_runs}
    print(f"{len(chosen)} runs tested; {len(open_runs)} runs of {len(sets)} sets to fit on; intervals of {LEVEL:.0%}")
    print(f"{'method':24} runs  accuracy: median, within 6   margin: median   rank  no offset   coverage, width")
    for name, method in METHODS.items():
        scores: dict[str, list[float]] = {}
        count = 0
        for seen in chosen:
            others = [other for other in open_runs if other.run.personas != seen.run.personas]
            try:
                one = score(seen, method(seen, others))
            except LookupError:
                continue
            count += 1
            for key, values in one.items():
                scores.setdefault(key, []).extend(values)
            if arguments.runs:
                print(f"    {seen.run.name:22}", {key: [round(v, 2) for v in values] for key, values in one.items()})
        if count:
            print(f"{name:24} {count:4}  {_summary(scores)}")


def _summary(scores: dict[str, list[float]]) -> str:
    accuracy, margin = np.abs(scores["accuracy"]), np.abs(scores["margin"])
    cover = [f"{np.mean(scores[key]):.0%}" for key in ("cover_accuracy", "cover_margin") if key in scores]
    width = f", {np.median(scores['width']):.0f} points" if "width" in scores else ""
    return (
        f"{np.median(accuracy):8.1f} points, {np.mean(accuracy <= 6):4.0%} (plain {np.median(np.abs(scores['plain'])):.1f})"
        f"{np.median(margin):14.0%}{np.median(scores['rank']):11.2f}{np.median(scores['rank_rest']):8.2f}       "
        f"{' '.join(cover)}{width}"
    )


if __name__ == "__main__":
    main()
