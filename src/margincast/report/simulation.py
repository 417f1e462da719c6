"""What does a simulated run look like beside its envelopes, its exact risk and its certificate?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.report.figures import new_figure
from margincast.report.page import PageFigure, PageTable, Section
from margincast.report.tables import Rows, number
from margincast.results import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from margincast.theory.simulation import Simulation

_COLOURS = {"printed": "#b2182b", "derived": "#ef8a62", "explicit": "#2166ac"}
_TRUTH, _CERTIFICATE = "#222222", "#4d9221"
TABLE_TITLE = "At tau_1; growth is the mean margin over t, in beta^2/tau"
TABLE_HEADER = ("tau_1", "margin min", "max", "certified lower", "upper", "growth", "log10 risk", "envelope held")


def simulation_results(run: Simulation) -> Json:
    """What `summary.json` says of one run."""
    last, lower, upper = run.train[-1], run.certificate.train.lower[-1], run.certificate.train.upper[-1]
    return {
        "tau_1": float(run.times[-1]),
        "margin_at_tau_1": {"min": float(last.min()), "max": float(last.max()), "mean": float(last.mean())},
        "fresh_margin_at_tau_1": {"min": float(run.fresh[-1].min()), "mean": float(run.fresh[-1].mean())},
        "certificate_at_tau_1": {"lower": float(lower.min()), "upper": float(upper.max())},
        "certified_learned_at_tau_1": {
            "train": int(run.certificate.train.certified_learned()[-1]),
            "train_true": int((last > 0).sum()),
            "fresh": int(run.certificate.heldout.certified_learned()[-1]),
            "fresh_true": int((run.fresh[-1] > 0).sum()),
        },
        "growth": run.growth,
        "log10_risk_at_tau_1": float(run.risk.log10[-1]),
        "envelope_held": run.envelope_held("derived"),
        "explicit_envelope_held": run.envelope_held("explicit"),
        "lemma_event_held": run.event_held,
        "lemma_deviations": [
            {"relation": line.relation.name.lower(), "measured": line.measured, "allowed": line.allowed}
            for line in run.deviations
        ],
    }


def simulation_rows(rows: Mapping[float, Mapping[str, Any]]) -> Rows:
    """Of the results of runs, by the value of what was varied."""
    return [
        [
            f"{value:g}",
            number(row["tau_1"]),
            number(row["margin_at_tau_1"]["min"]),
            number(row["margin_at_tau_1"]["max"]),
            number(row["certificate_at_tau_1"]["lower"]),
            number(row["certificate_at_tau_1"]["upper"]),
            number(row["growth"]),
            number(row["log10_risk_at_tau_1"], 4),
            "yes" if row["envelope_held"] else "no",
        ]
        for value, row in rows.items()
    ]


def simulation_table(results: Mapping[str, Any]) -> PageTable:
    """Of the `results` of `simulate`: a row per value of what was varied, which comes first in the row of a run."""
    runs = results.get("sweep", [results])
    name = next(iter(runs[0]))
    return PageTable(TABLE_TITLE, (name, *TABLE_HEADER), simulation_rows({row[name]: row for row in runs}))


def simulation_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """The page of `simulate`."""
    results = summary["results"]
    captions = {
        "trajectories": "Training margins between the theorem's envelopes, the explicit ones and the certificate.",
        "risk": "The exact population risk, and the bounds on it at tau_1.",
        "coverage": "The share of pairs that are learned, and the share that the certificate proves learned.",
    }
    swept = results.get("swept")
    tails = {f"-{swept}={row[swept]:g}": f" {swept} = {row[swept]:g}." for row in results.get("sweep", [])} or {"": ""}
    grown = PageFigure(folder / "figures" / "sweep.svg", f"How fast margins grow as {swept} varies.")
    return [
        Section(
            title="Simulated training on the preference distribution",
            texts=["Draws of Section 4.1's distribution, gradient flow to tau_1, and what the theory promises of it."],
            tables=[simulation_table(results)],
            figures=[
                *([grown] if swept else []),
                *(
                    PageFigure(folder / "figures" / f"{name}{tail}.svg", f"{caption}{which}")
                    for tail, which in tails.items()
                    for name, caption in captions.items()
                ),
            ],
        )
    ]


def trajectories_figure(run: Simulation) -> Figure:
    """Training margins over time between the theorem's envelopes, the explicit ones and the certificate."""
    figure, axes = _axes("time t (learning rate x steps / tau)", "training margin r")
    times = (run.times / run.tau).numpy()
    axes.fill_between(times, run.train.amin(1), run.train.amax(1), color=_TRUTH, alpha=0.35, label="all training pairs")
    axes.plot(times, run.train.mean(1), color=_TRUTH, label="mean")
    axes.plot(times, run.certificate.train.lower.amin(1), "--", color=_CERTIFICATE, label="certificate")
    axes.plot(times, run.certificate.train.upper.amax(1), "--", color=_CERTIFICATE)
    for form in ("derived", "explicit"):
        guarantee = run.guarantees[form]
        for rate, label in ((guarantee.lower_rate, f"envelopes, {form}"), (guarantee.upper_rate, None)):
            axes.plot(times, rate * run.times.numpy(), ":", color=_COLOURS[form], label=label)
    axes.set_title(_setting(run), fontsize=9)
    axes.legend(fontsize=8)
    return figure


def risk_figure(run: Simulation) -> Figure:
    """Exact population risk over time, and the bounds on it at tau_1, in powers of ten."""
    figure, axes = _axes("time t (learning rate x steps / tau)", "log10 population risk")
    times = (run.times / run.tau).numpy()
    # At t = 0 every margin is 0 and the risk is 1; the drop at the first update would hide the rest of the curve.
    axes.plot(times[1:], run.risk.log10[1:], color=_TRUTH, label="exact")
    for form, colour in _COLOURS.items():
        guarantee = run.guarantees[form]
        value = guarantee.log_risk / math.log(10.0)
        verdict = "says nothing" if guarantee.risk_vacuous else "bound at tau_1"
        axes.plot(times[-1], value, "o", color=colour, label=f"{form}: 1e{value:.1f}, {verdict}")
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.set_title(_setting(run), fontsize=9)
    axes.legend(fontsize=8)
    return figure


def coverage_figure(run: Simulation) -> Figure:
    """Share of pairs that are learned, and share that the certificate proves learned, over time."""
    figure, axes = _axes("time t (learning rate x steps / tau)", "share of pairs with r > 0")
    times = (run.times / run.tau).numpy()
    for name, margins, bracket, colour in (
        ("training", run.train, run.certificate.train, _TRUTH),
        ("new", run.fresh, run.certificate.heldout, _CERTIFICATE),
    ):
        axes.plot(times, (margins > 0).double().mean(1), color=colour, label=f"{name} pairs, true")
        axes.plot(times, bracket.certified_learned() / margins.shape[1], "--", color=colour, label=f"{name}, certified")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(_setting(run), fontsize=9)
    axes.legend(fontsize=8)
    return figure


def sweep_figure(name: str, values: Sequence[float], runs: Sequence[Simulation]) -> Figure:
    """How fast margins grow as one parameter varies: mean and range of r/t at tau_1, beside the corrected envelopes.

    r/t is in units of beta^2/tau, so that runs with different tau_1 compare.
    """
    figure, axes = _axes(name, "growth r/t up to tau_1, in beta^2/tau")
    scaled = [run.train[-1] / run.times[-1] * run.tau / run.beta**2 for run in runs]
    mean = [float(rates.mean()) for rates in scaled]
    low = [float(rates.mean() - rates.min()) for rates in scaled]
    high = [float(rates.max() - rates.mean()) for rates in scaled]
    axes.errorbar(values, mean, yerr=(low, high), fmt="o-", color=_TRUTH, capsize=3, label="mean and range of the run")
    for side, label in (("lower_rate", "corrected envelopes"), ("upper_rate", None)):
        bound = [getattr(run.guarantees["derived"], side) * run.tau / run.beta**2 for run in runs]
        axes.plot(values, bound, ":", color=_COLOURS["derived"], label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure, grid = new_figure(1, width=6.4, height=4.2)
    axes: Axes = grid[0, 0]
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _setting(run: Simulation) -> str:
    it = run.distribution
    return f"K={it.K}, Q={it.Q}, d={it.d}, l_b={it.shared_norm:g}, v={it.noise:g}, Z={it.Z}, seed {run.seed}"
