"""margincast compare"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from margincast.cli.job import Job, open_job
from margincast.cli.options import OutputOptions
from margincast.errors import InputError
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.runs.load import Run


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a forecast or training run")],
    b: Annotated[Path, typer.Argument(help="Folder of the run to set beside it")],
    output: OutputOptions,
    twins: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs like B with another --seed, which set the floor of a forecast's score"),
    ] = None,
) -> None:
    """Set two runs side by side: curves, per-concept table, rank correlation, errors with intervals.

    Of a forecast with intervals and a run: which concepts came inside, and the score of the forecast.

    Example: margincast compare runs/forecast-... runs/train-...
    """
    beside = {"twins": [str(twin) for twin in twins]} if twins else {}
    job = open_job("compare", output, a=str(a), b=str(b), **beside)
    job.done(run_comparison(job, a, b, twins or ()))


def run_comparison(job: Job, a: Path, b: Path, twins: Sequence[Path] = ()) -> Json:
    """Compare run `b` with run `a`, save figures, report and summary, print what they say and the table."""
    from margincast.comparison import compare as compare_trajectories
    from margincast.report import tables
    from margincast.report.figures import comparison_curves, margin_scatter, save_figure
    from margincast.report.reading import read_comparison
    from margincast.report.sections import write_page
    from margincast.runs.differences import differences
    from margincast.runs.layout import FORETOLD
    from margincast.runs.load import load_run
    from margincast.runs.save import write_summary
    from margincast.runs.store import write_jsonl

    run_a, run_b, *others = (load_run(folder) for folder in (a, b, *twins))
    comparison = compare_trajectories(run_a, run_b, *others)
    check_twins(run_a if run_b.summary["command"] == "forecast" else run_b, others)
    titles = (run_a.title, run_b.title)
    save_figure(comparison_curves(comparison, *titles), job.out / "figures", "curves")
    save_figure(margin_scatter(comparison, *titles), job.out / "figures", "margins")
    if comparison.foretold is not None:
        write_jsonl(job.out / FORETOLD, [each.as_dict() for each in comparison.foretold.outcomes])
    results = {
        "a": str(a),
        "b": str(b),
        "titles": list(titles),
        "step": comparison.a.steps[-1],
        "heldout": comparison.heldout.as_dict(),
        "train": comparison.trained.as_dict() if comparison.trained else None,
        "concepts": {name: agreement.as_dict() for name, agreement in comparison.concepts.items()},
        **differences(run_a, run_b).as_dict(),
        **(comparison.foretold.as_dict() if comparison.foretold else {}),
        "seconds": job.seconds,
    }
    summary = write_summary(job.out, "compare", job.config, results)
    write_page(job.out)
    for text in read_comparison(results):
        job.say(text)
    job.table(
        f"Step {results['step']}, A: {titles[0]}, B: {titles[1]}",
        tables.AGREEMENT_HEADER,
        tables.agreement_rows(results),
    )
    if comparison.foretold is not None:
        title = f"Step {results['step']}: what was foretold and what came"
        job.table(title, tables.FORETOLD_HEADER, tables.foretold_rows(results["foretold"]))
    return summary


def check_twins(run: Run, twins: Sequence[Run]) -> None:
    """Raises `InputError` for a twin that is another run than `run` in more than its seed, or the same one."""
    from margincast.runs.differences import differences

    for twin in twins:
        differing = set(differences(run, twin).differing)
        if differing != {"seed"}:
            other = ", ".join(sorted(differing - {"seed"}))
            what = f"differs from the run in {other}" if other else "has the seed of the run"
            raise InputError(f"{twin.folder} {what}; a twin is the same run with another --seed")
