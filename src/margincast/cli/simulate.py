"""margincast simulate"""

from __future__ import annotations

from dataclasses import dataclass, replace

from margincast.cli.bounds import DISTRIBUTION, DistributionOptions
from margincast.cli.job import open_job
from margincast.cli.options import OutputOptions, parse_sweep
from margincast.recipe.fields import option

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
    from margincast.report.simulation import simulation_table
    from margincast.theory.simulation import Setup
    from margincast.theory.simulation import sweep as run_sweep

    def setup(options: SimulationOptions) -> Setup:
        return Setup(options.distribution(), options.beta, options.tau, options.seed)

    sweep = options.sweep if options.sweep is not None else f"seed={options.seed}"
    name, values = parse_sweep(sweep, SWEPT, "K=1,2,4")
    setups = {value: setup(replace(options, **{name: value})) for value in values}
    job = open_job("simulate", output, options)
    summary = job.keep(run_sweep(name, setups, processes=options.processes, progress=job.progress))
    table = simulation_table(summary["results"])
    job.table(table.caption, table.header, table.rows)
    job.done(summary)
