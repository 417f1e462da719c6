"""How far do constants vary from data to data? The widths of the prior that `calibrate` shrinks to, from the bank.

    python -m benchmarks.forecast.prior [--write]

Of what the bank keeps in the repository alone: margins, labels and settings; no features, so the exponent of the
shape's spread is not among the columns, and its width is that of the path length. Equations: docs/calibrating.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.forecast.bank import BANK, kept, rehearsal_of, settings_of
from benchmarks.forecast.plan import PLAN, Run
from margincast.runs.store import write_json
from margincast.trained.fit import SMALL
from margincast.trained.fit_run import LEAST
from margincast.trained.laws import Responses
from margincast.trained.rehearsal_law import FLOOR
from margincast.trained.time import ADAPTER_UNIT, UNIT

ENOUGH = 16  # pairs of a batch, as for the constants of the package
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A run of the bank. end, reached: mean margin over beta without offsets of the run and of its rehearsal, in nats;
    growth: (log x, log size / end) on the way"""

    data: str
    length: float
    pairs: int
    lora: bool
    end: float
    reached: float
    growth: tuple[tuple[float, float], ...]


def row_of(run: Run) -> Row:
    tensors, rehearsal = load_file(BANK / f"{run.name}.safetensors"), load_file(rehearsal_of(run))
    yes = tensors["heldout_yes"].long()
    responses = Responses(yes, 1 - yes, tensors["heldout_concept"].long())
    sizes = responses.part(tensors["heldout"].double()).rest.mean(1)
    reached = float(responses.part(rehearsal["heldout"].double()).rest.mean())
    end = max(LEAST, float(sizes[-1]))
    settings = settings_of(run)
    unit = ADAPTER_UNIT if run.train == "lora" else UNIT
    factors = np.cumsum([0.0, *(settings.factor(done) for done in range(run.steps))])
    growth = [
        (float(np.log(factors[step] / factors[-1])), float(np.log(size / end)))
        for step, size in zip(tensors["steps"].tolist(), sizes.tolist(), strict=True)
        if 0 < step < run.steps and size > SMALL
    ]
    length = float(run.learning_rate * factors[-1] / unit)
    return Row(run.personas, length, run.steps * run.batch, run.train == "lora", end, reached, tuple(growth))


def columns(rows: list[Row], beside: bool) -> Values:
    """A constant, and logarithms of path length, pairs, the adapter and, beside a rehearsal, of what it reached."""
    listed = [
        [1.0, np.log(row.length), np.log(row.pairs), float(row.lora), *([np.log(max(row.reached, 0) + FLOOR)] * beside)]
        for row in rows
    ]
    return np.array(listed)


def fitted(rows: list[Row], beside: bool) -> Values:
    found = np.linalg.lstsq(columns(rows, beside), np.log([row.end for row in rows]), rcond=None)[0]
    return np.asarray(found, dtype=np.float64)


def grown(rows: list[Row]) -> Values:
    points = [(x, x * np.log(row.end), y) for row in rows for x, y in row.growth]
    table = np.array(points)
    found = np.linalg.lstsq(table[:, :2], table[:, 2], rcond=None)[0]
    return np.asarray(found, dtype=np.float64)


def spread_of(rows: list[Row], fit: Callable[[list[Row]], Values]) -> Values:
    """Standard errors of `fit` by leaving data sets out (the jackknife over sets)."""
    sets = sorted({row.data for row in rows})
    found = np.array([fit([row for row in rows if row.data != one]) for one in sets])
    squares = ((found - found.mean(0)) ** 2).sum(0)
    errors: Values = np.sqrt(squares * (len(sets) - 1) / len(sets))
    return errors


def components(rows: list[Row], beside: bool) -> tuple[float, float]:
    """Standard deviations of what is left of log A: between data sets, and within them (one-way analysis of variance
    with sets of unequal size; Searle, Casella and McCulloch 1992, 3.6)."""
    left = np.log([row.end for row in rows]) - columns(rows, beside) @ fitted(rows, beside)
    groups = [left[[row.data == one for row in rows]] for one in sorted({row.data for row in rows})]
    sizes = np.array([len(group) for group in groups])
    free = len(rows) - len(groups)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / free
    between = sum(len(group) * float((group.mean() - left.mean()) ** 2) for group in groups) / (len(groups) - 1)
    typical = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(groups) - 1)
    return float(np.sqrt(max((between - within) / typical, 0.0))), float(np.sqrt(within))


def heaviness(rows: list[Row]) -> float:
    """Degrees of freedom of the t distribution whose kurtosis what is left of log A has, 3 + 6 / (nu - 4); as many as
    there are data sets where it has that of a normal or less."""
    left = np.log([row.end for row in rows]) - columns(rows, True) @ fitted(rows, True)
    kurtosis = float((left**4).mean() / (left**2).mean() ** 2) - 3.0
    sets = len({row.data for row in rows})
    return min(sets, 4.0 + 6.0 / kurtosis) if kurtosis > 0 else sets


def measured() -> dict[str, dict[str, float]]:
    rows = [row_of(run) for run in PLAN if kept(run) and run.batch >= ENOUGH]
    result: dict[str, dict[str, float]] = {}
    for name, beside in (("alone", False), ("beside", True)):
        between, within = components(rows, beside)
        _, length, pairs, adapter, *power = spread_of(rows, lambda some: fitted(some, beside))  # noqa: B023
        result[name] = {
            "between": between, "within": within, "length": length, "pairs": pairs, "spread": length,
            "adapter": adapter, "power": (power or [0.0])[0],
        }  # fmt: skip
    power, slowing = spread_of(rows, grown)
    result["growth"] = {"power": power, "slowing": slowing}
    as_it_is = np.array([np.log(row.end / (max(row.reached, 0.0) + FLOOR)) for row in rows])
    result["rehearsal"] = {"mean": float(as_it_is.mean()), "deviation": float(as_it_is.std(ddof=1))}
    result["weight"] = {"sets": len({row.data for row in rows}), "noise": heaviness(rows)}
    return {name: {key: float(f"{value:.3g}") for key, value in each.items()} for name, each in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.prior", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the prior of the package")
    torch.set_num_threads(1)
    found = measured()
    print(found)
    if parser.parse_args().write:
        write_json(Path(str(files("margincast.trained").joinpath("prior.json"))), found)


if __name__ == "__main__":
    main()
