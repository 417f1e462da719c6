"""Simulations beside one another: a row per run, and the folder of `simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from margincast.report.figures import save_figure
from margincast.report.saving import Contents, saving
from margincast.report.simulation import (
    coverage_figure,
    risk_figure,
    simulation_results,
    simulation_table,
    sweep_figure,
    trajectories_figure,
)
from margincast.results import PRESENTERS, Json, Presenter
from margincast.theory.simulation import Sweep


def _rows(sweep: Sweep) -> list[Json]:
    return [
        {
            sweep.name: value,
            "tau_1": float(run.times[-1]),
            "margin_min": float(run.train[-1].min()),
            "margin_mean": float(run.train[-1].mean()),
            "margin_max": float(run.train[-1].max()),
            "growth": run.growth,
            "log10_risk": float(run.risk.log10[-1]),
            "envelope_held": run.envelope_held("derived"),
        }
        for value, run in zip(sweep.values, sweep.runs, strict=True)
    ]


def _summary(sweep: Sweep) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    table = simulation_table(_results(sweep))
    return table.caption, table.header, table.rows


def leave(sweep: Sweep, folder: Path) -> Contents:
    """The figures of every run, and how they compare where there are several."""
    figures = folder / "figures"
    several = len(sweep.runs) > 1
    for value, run in zip(sweep.values, sweep.runs, strict=True):
        tail = f"-{sweep.name}={value:g}" if several else ""
        save_figure(trajectories_figure(run), figures, f"trajectories{tail}")
        save_figure(risk_figure(run), figures, f"risk{tail}")
        save_figure(coverage_figure(run), figures, f"coverage{tail}")
    if several:
        save_figure(sweep_figure(sweep.name, sweep.values, sweep.runs), figures, "sweep")
    first = sweep.runs[0]
    it = first.distribution
    config = {name: getattr(it, name) for name in ("K", "Q", "d", "shared_norm", "noise", "Z")}
    config |= {"beta": first.beta, "tau": first.tau, "seed": first.seed}
    if several:
        config["sweep"] = f"{sweep.name}={','.join(f'{value:g}' for value in sweep.values)}"
    return Contents("simulate", _results(sweep), config)


def _results(sweep: Sweep) -> Json:
    """What was varied comes first in the row of a run."""
    rows = [{sweep.name: value, **simulation_results(run)} for value, run in zip(sweep.values, sweep.runs, strict=True)]
    return {"swept": sweep.name, "sweep": rows} if len(rows) > 1 else rows[0]


PRESENTERS.register("sweep")(Presenter(_rows, _summary, saving(leave)))
