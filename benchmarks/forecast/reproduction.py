"""How far were the forecasts of a reproduction from its runs? By number of personas, and over all concepts.

    python -m benchmarks.forecast.reproduction RUN_FOLDER

RUN_FOLDER is a `margincast reproduce all --scale cpu`: its forecasts of training all weights are set against
the runs themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from margincast.paper.scales import SCALES, run_specs
from margincast.runs.layout import SUMMARY
from margincast.runs.load import load_run


def pairs_of_runs(folder: Path) -> list[tuple[int, Any, Any]]:
    """(K, forecast, training) of every run whose weights all train, and that is there; of others it says so."""
    kind = "all", "forecast"
    specs = sorted(
        (spec for spec in run_specs(SCALES["cpu"]) if (spec.weights, spec.source) == kind), key=lambda s: s.K
    )
    twins = [(spec, replace(spec, source="training")) for spec in specs]
    found = []
    for made, true in twins:
        paths = [folder / "runs" / one.folder for one in (made, true)]
        missing = [path.name for path in paths if not (path / SUMMARY).is_file()]
        if missing:
            print(f"not there: {', '.join(missing)}")
        else:
            forecast, run = map(load_run, paths)
            found.append((made.K, forecast, run))
    if not found:
        raise SystemExit(
            f"{folder} has no run with its forecast; give the folder of `margincast reproduce all --scale cpu`"
        )
    return found


def concept_errors(made: Any, true: Any) -> list[tuple[float, bool]]:
    """Of every concept by how many points its accuracy at the end was missed, and whether the interval held it."""
    rows = []
    for name, told in made.summary["results"]["concepts"].items():
        real, span = true.summary["results"]["concepts"][name]["heldout_accuracy"]["value"], told["heldout_accuracy"]
        rows.append((100.0 * (span["value"] - real), span["low"] - 1e-9 <= real <= span["high"] + 1e-9))
    return rows


def main() -> None:
    errors: list[tuple[float, bool]] = []
    margins: list[tuple[float, bool]] = []
    by_k: dict[int, list[tuple[str, ...]]] = {}
    medians: dict[int, list[float]] = {}
    for K, made, true in pairs_of_runs(Path(sys.argv[1])):
        told, real = made.trajectory.heldout.margins[-1], true.trajectory.heldout.margins[-1]
        mine, results = concept_errors(made, true), made.summary["results"]
        span, mean = results["heldout_margin"][-1], float(real.mean())
        errors += mine
        margins.append((span["value"] / mean - 1.0, span["low"] <= mean <= span["high"]))
        medians.setdefault(K, []).extend(abs(error) for error, _ in mine)
        accuracy, learned = results["heldout_accuracy"][-1]["value"], float((real > 0).double().mean())
        rank = float(spearmanr(told, real).statistic)
        line = (f"{accuracy:.0%}", f"{learned:.0%}", f"{span['value']:.2f}", f"{mean:.2f}", f"{rank:.2f}")
        by_k.setdefault(K, []).append(line)
    print("| K | accuracy error of concepts: median | held-out accuracy | held-out margin | Spearman as it is |")
    print("|---|---|---|---|---|")
    for K, lines in by_k.items():
        cells: list[str] = [", ".join(column) for column in zip(*lines, strict=True)]
        accuracy_cell = f"forecast {cells[0]}; runs {cells[1]}"
        margin_cell = f"forecast {cells[2]}; runs {cells[3]}"
        print(f"| {K} | {np.median(medians[K]):.1f} points | {accuracy_cell} | {margin_cell} | {cells[4]} |")
    print(f"{len(errors)} concepts: {_summary(errors, 6.0)} points")
    print(f"{len(margins)} runs, relative error of the mean margin: {_summary(margins, 0.15)}")


def _summary(missed: Sequence[tuple[float, bool]], near: float) -> str:
    size = np.abs([error for error, _ in missed])
    held = np.mean([inside for _, inside in missed])
    return f"median {np.median(size):.2f}, within {near:g}: {np.mean(size <= near):.0%}, in the interval {held:.0%}"


if __name__ == "__main__":
    main()
