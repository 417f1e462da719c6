"""How good are forecasts of full fine-tuning? Every method on every run of the bank, its constants from other sets.

    MARGINCAST_PERSONA_DIR=... python -m benchmarks.forecast.evaluate [--last] [--size N] [--runs] [--write]

Constants are fitted on the runs of all other persona sets: leave one set out. With `--last` the last sets that were
trained are tested, and constants fitted on none of them. Only runs of batches of at least 16 pairs are fitted on.
Printed for each method: the error of held-out accuracy per concept at the end, the error of the mean margin, Spearman's
correlation of the margins of pairs as they are and without their shared offset, how often the 90% intervals of accuracy
and mean margin hold the truth, and how wide those of accuracy are. `--write` fits the constants that `margincast
forecast` uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.forecast.baselines import BASELINES
from benchmarks.forecast.methods import METHODS, Answer
from benchmarks.forecast.truth import Truth, every_run
from margincast.trained.fit import fit_constants
from margincast.trained.noise import COVERAGE
from margincast.trained.offset import Parts

ENOUGH = 16  # pairs of a batch: rehearsals of smaller ones have too few steps to fit constants on


def score(seen: Truth, answer: Answer) -> dict[str, list[float]]:
    """Errors of one answer. Accuracies in points; coverage as 0 and 1."""
    truth = seen.margins[-1]
    told, true = seen.part(answer.margins), seen.end
    mean = float(answer.margins.mean()) if answer.mean is None else answer.mean
    truths = [float((truth[rows] > 0).double().mean()) for rows in seen.groups]
    forecast = answer.accuracy
    if forecast is None:
        forecast = [float((answer.margins[rows] > 0).double().mean()) for rows in seen.groups]
    result = {
        "accuracy": [100 * (f - t) for f, t in zip(forecast, truths, strict=True)],
        "margin": [mean / float(truth.mean()) - 1],
        "rank": [_rank(answer.margins, truth)],
        "rank_rest": [_rank(_without_shared(told), _without_shared(true))],
    }
    if answer.spans is not None:
        spans, span = answer.spans
        result["cover_accuracy"] = [
            float(s.low - 1e-9 <= t <= s.high + 1e-9) for s, t in zip(spans, truths, strict=True)
        ]
        result["width"] = [100 * (s.high - s.low) for s in spans]
        result["cover_margin"] = [float(span.low <= float(truth.mean()) <= span.high)]
    return result


def _without_shared(parts: Parts) -> Tensor:
    return parts.rest + parts.concept_offset


def _rank(left: Tensor, right: Tensor) -> float:
    return float(spearmanr(left.numpy(), right.numpy()).statistic)


def write_constants(runs: Sequence[Truth]) -> Path:
    """Fit the constants of the package on `runs`."""
    path = Path(str(files("margincast.trained").joinpath("constants.json")))
    fit_constants([each.trained for each in runs]).save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.evaluate", description=__doc__)
    parser.add_argument("--last", action="store_true", help="test on the last sets, fitted on the others")
    parser.add_argument("--runs", action="store_true", help="a line for every run too")
    parser.add_argument("--size", type=int, default=0, help="only runs of at least this batch size")
    parser.add_argument("--write", action="store_true", help="fit the constants of the package")
    arguments = parser.parse_args()
    known = [s for s in every_run() if s.run.batch >= ENOUGH and not (arguments.last and s.run.last)]
    if arguments.write:
        print(f"wrote {write_constants(known).name}")
        return
    chosen = [s for s in every_run() if (s.run.last or not arguments.last) and s.run.batch >= arguments.size]
    sets = {seen.run.personas for seen in known}
    print(f"{len(chosen)} runs tested; {len(known)} runs of {len(sets)} sets to fit on; intervals of {COVERAGE:.0%}")
    print(f"{'method':24} runs  accuracy: median, within 6   margin: median   rank  no offset   coverage, width")
    for name, method in (METHODS | BASELINES).items():
        scores: dict[str, list[float]] = {}
        count = 0
        for seen in chosen:
            others = [other for other in known if other.run.personas != seen.run.personas]
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
        f"{np.median(accuracy):8.1f} points, {np.mean(accuracy <= 6):4.0%}{np.median(margin):20.0%}"
        f"{np.median(scores['rank']):11.2f}{np.median(scores['rank_rest']):11.2f}    {' '.join(cover)}{width}"
    )


if __name__ == "__main__":
    main()
