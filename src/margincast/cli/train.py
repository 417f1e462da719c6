"""margincast train"""

from __future__ import annotations

from dataclasses import dataclass

from margincast.cli.inputs import PairInputs, Reading, keep_for_attribution, load_inputs
from margincast.cli.job import Job, open_job
from margincast.cli.options import Data, InputOptions, OutputOptions, PairOptions
from margincast.recipe.fields import OUTPUT, option
from margincast.recipe.recipe import Recipe
from margincast.results import Json


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """What is kept of a training run beside its numbers."""

    save_model: bool = option(True, "Keep the trained model", OUTPUT)


def train(
    data: Data,
    recipe: Recipe,
    inputs: InputOptions,
    pairs: PairOptions,
    keep: KeepOptions,
    output: OutputOptions,
) -> None:
    """Train for real, and record the margin of every held-out pair on the way.

    Example: margincast train persona:k1 --max_steps 40 --learning_rate 1e-5
    """
    job = open_job("train", output, recipe, inputs, pairs, keep, data=data)
    if job.finished:
        job.say("This run is already finished (its data are not read again); --no_resume runs it anew.")
        job.done(finished_summary(job))
        return
    recipe.check_trainable()
    job.say_defaults(recipe)
    reading = Reading(data, inputs, pairs, recipe.seed, recipe.max_length)
    loaded = load_inputs(job, reading)
    if not loaded.encoding.single_token:
        keep_for_attribution(job, loaded)
    job.done(run_training(job, loaded, recipe, keep))


def finished_summary(job: Job) -> Json:
    from margincast.report.sections import write_page
    from margincast.runs.layout import REPORT
    from margincast.runs.load import load_run
    from margincast.training.run import forget_state

    summary = load_run(job.out).summary
    if not (job.out / REPORT).is_file():  # stopped after its results, before the page
        write_page(job.out)
    forget_state(job.out)
    return summary


def run_training(job: Job, inputs: PairInputs, recipe: Recipe, keep: KeepOptions) -> Json:
    """Train, save the run, print its tables."""
    from margincast.report import tables
    from margincast.report.figures import run_curves, save_figure
    from margincast.report.sections import write_page
    from margincast.runs.layout import REFERENCES
    from margincast.runs.save import save_trajectory, trajectory_results, write_summary
    from margincast.training.references import write_references
    from margincast.training.run import forget_state, train_model

    trajectory = train_model(
        inputs.loaded,
        inputs.encoding,
        inputs.features,
        recipe,
        job.out,
        progress=job.progress,
        save_model=keep.save_model,
        keep_state=True,
        say=job.say,
    )
    if not job.main:
        return {}
    rows = save_trajectory(job.out, trajectory)
    if inputs.encoding.eos:  # without that token they are of other responses than TRL's
        write_references(job.out / REFERENCES, inputs.features, inputs.encoding)
    save_figure(run_curves(trajectory), job.out / "figures", "curves")
    results = trajectory_results(trajectory, rows, job.seconds)
    summary = write_summary(job.out, "train", job.config, results, **inputs.sections())
    write_page(job.out)
    forget_state(job.out)
    job.table(f"{trajectory.origin}".capitalize(), tables.STEP_HEADER, tables.step_rows(rows))
    job.table(f"Step {trajectory.steps[-1]}", tables.CONCEPT_HEADER, tables.concept_rows(results["concepts"]))
    return summary
