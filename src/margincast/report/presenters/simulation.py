"""One simulation: a row per recorded time, and the folder of `simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from margincast.report.presenters.sweep import leave
from margincast.report.saving import Contents, saving
from margincast.report.simulation import TABLE_HEADER, TABLE_TITLE, simulation_results, simulation_rows
from margincast.results import PRESENTERS, Json, Presenter
from margincast.theory.simulation import Simulation, Sweep


def _rows(run: Simulation) -> list[Json]:
    bracket = run.certificate.train
    columns = {
        "time": run.times,
        "margin_min": run.train.amin(1),
        "margin_mean": run.train.mean(1),
        "margin_max": run.train.amax(1),
        "fresh_margin_mean": run.fresh.mean(1),
        "certificate_lower": bracket.lower.amin(1),
        "certificate_upper": bracket.upper.amax(1),
        "log10_risk": run.risk.log10,
    }
    lines = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, line, strict=True)) for line in lines]


def _summary(run: Simulation) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    return TABLE_TITLE, ("seed", *TABLE_HEADER), simulation_rows({run.seed: simulation_results(run)})


def _leave(run: Simulation, folder: Path) -> Contents:
    return leave(Sweep("seed", (run.seed,), (run,)), folder)


PRESENTERS.register("simulation")(Presenter(_rows, _summary, saving(_leave)))
