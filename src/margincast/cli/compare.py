"""margincast compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from margincast.cli.job import Job, open_job
from margincast.cli.options import OutputOptions
from margincast.results import Json


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a forecast or training run")],
    b: Annotated[Path, typer.Argument(help="Folder of the run to set beside it")],
    output: OutputOptions,
) -> None:
    """Set two runs side by side: curves, per-concept table, rank correlation, errors with intervals.

    Example: margincast compare runs/forecast-... runs/train-...
    """
    job = open_job("compare", output, a=str(a), b=str(b))
    job.done(run_comparison(job, a, b))


def run_comparison(job: Job, a: Path, b: Path) -> Json:
    """Compare run `b` with run `a`, save figures, report and summary, print the table."""
    from margincast.comparison import compare as compare_trajectories
    from margincast.report import tables
    from margincast.report.figures import comparison_curves, margin_scatter, save_figure
    from margincast.report.sections import write_page
    from margincast.runs.load import load_run
    from margincast.runs.save import write_summary

    run_a, run_b = load_run(a), load_run(b)
    comparison = compare_trajectories(run_a.trajectory, run_b.trajectory)
    titles = (run_a.title, run_b.title)
    save_figure(comparison_curves(comparison, *titles), job.out / "figures", "curves")
    save_figure(margin_scatter(comparison, *titles), job.out / "figures", "margins")
    results = {
        "a": str(a),
        "b": str(b),
        "titles": list(titles),
        "step": comparison.a.steps[-1],
        "heldout": comparison.heldout.as_dict(),
        "train": comparison.trained.as_dict() if comparison.trained else None,
        "concepts": {name: agreement.as_dict() for name, agreement in comparison.concepts.items()},
        "seconds": job.seconds,
    }
    summary = write_summary(job.out, "compare", job.config, results)
    write_page(job.out)
    job.table(
        f"Step {results['step']}, A: {titles[0]}, B: {titles[1]}",
        tables.AGREEMENT_HEADER,
        tables.agreement_rows(results),
    )
    return summary
