"""margincast simulate"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from margincast.cli.bounds import DISTRIBUTION, DistributionOptions
from margincast.cli.job import Job, open_job
from margincast.cli.options import OutputOptions, parse_sweep
from margincast.errors import InputError
from margincast.recipe.fields import option
from margincast.records import Json
from margincast.report.tables import number

if TYPE_CHECKING:
    from margincast.theory.simulation import Job as SimulationJob
    from margincast.theory.simulation import Simulation

SWEPT = dict.fromkeys(("K", "Q", "d", "Z", "seed"), int) | dict.fromkeys(("shared_norm", "noise", "beta", "tau"), float)


@dataclass(frozen=True, kw_only=True)
class SimulationOptions(DistributionOptions):
    """A draw of the distribution, or several."""

    seed: int = option(0, "Of the draw", DISTRIBUTION, least=0)
    sweep: str | None = option(None, "Vary one of the flags, as in K=1,2,4,8,16; values run in parallel")
    processes: int | None = option(None, "At most so many at once [default: processors]", least=1, setting=False)


def simulate(options: SimulationOptions, output: OutputOptions) -> None:
    """Draw the preference distribution, run the dynamics, set them against the envelopes and the exact risk.

    Example: margincast simulate --Q 50 --d 200 --noise 0.035 --sweep K=1,2,4,8,16
    """
    sweep = options.sweep if options.sweep is not None else f"seed={options.seed}"
    name, values = parse_sweep(sweep, SWEPT, "K=1,2,4")
    jobs = [_simulation_job(replace(options, **{name: value})) for value in values]
    job = open_job("simulate", output, options)
    job.done(run_simulations(job, name, values, jobs, options.processes))


def _simulation_job(options: SimulationOptions) -> SimulationJob:
    from margincast.theory.simulation import Job as SimulationJob

    distribution = options.distribution()  # refuses a bad beta or tau before anything is written
    if distribution.N * distribution.d > 10**9:
        raise InputError(
            f"K, Q and d ask for {distribution.N:,} features of width {distribution.d:,}, more than 1e9 numbers; "
            "lower Q or d"
        )
    return SimulationJob(distribution, options.beta, options.tau, options.seed)


def run_simulations(job: Job, name: str, values: list[float], jobs: list[SimulationJob], processes: int | None) -> Json:
    """Run every job, save figures and summary, print the table. A sweep's own figure sets the runs side by side."""
    from margincast.report.figures import save_figure
    from margincast.report.simulation import coverage_figure, risk_figure, sweep_figure, trajectories_figure
    from margincast.runs.save import write_summary

    runs = _run(job, jobs, processes)
    for value, run in zip(values, runs, strict=True):
        tail = f"-{name}={value:g}" if len(runs) > 1 else ""
        save_figure(trajectories_figure(run), job.out / "figures", f"trajectories{tail}")
        save_figure(risk_figure(run), job.out / "figures", f"risk{tail}")
        save_figure(coverage_figure(run), job.out / "figures", f"coverage{tail}")
    rows = [{name: value, **simulation_results(run)} for value, run in zip(values, runs, strict=True)]
    results: Json = rows[0]
    if len(runs) > 1:
        save_figure(sweep_figure(name, values, runs), job.out / "figures", "sweep")
        results = {"swept": name, "sweep": rows}
    summary = write_summary(job.out, "simulate", job.config, {**results, "seconds": job.seconds})
    header = (name, "tau_1", "margin min", "max", "certified lower", "upper", "growth", "log10 risk", "envelope held")
    table = [
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
        for value, row in zip(values, rows, strict=True)
    ]
    job.table("At tau_1; growth is the mean margin over t, in beta^2/tau", header, table)
    return summary


def _run(job: Job, jobs: list[SimulationJob], processes: int | None) -> list[Simulation]:
    from tqdm import tqdm

    from margincast.theory.simulation import simulate as run_simulation
    from margincast.theory.simulation import sweep as run_sweep

    if len(jobs) == 1:
        return [run_simulation(jobs[0].distribution, jobs[0].beta, jobs[0].tau, jobs[0].seed)]
    done: dict[int, Simulation] = {}
    with tqdm(total=len(jobs), desc="simulating", disable=not job.progress) as bar:
        for index, run in run_sweep(jobs, processes):
            done[index] = run
            bar.update()
    return [done[index] for index in range(len(jobs))]


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
        "growth": float(last.mean()) / float(run.times[-1]) * run.tau / run.beta**2,
        "log10_risk_at_tau_1": float(run.risk.log10[-1]),
        "envelope_held": run.envelope_held("derived"),
        "explicit_envelope_held": run.envelope_held("explicit"),
        "lemma_event_held": run.event_held,
        "lemma_deviations": [
            {"relation": line.relation.name.lower(), "measured": line.measured, "allowed": line.allowed}
            for line in run.deviations
        ],
    }
