"""margincast train"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from margincast.cli.effects import EvalOptions, encoded_eval, read_eval, say_effects
from margincast.cli.inputs import PairInputs, Reading, keep_for_attribution, load_inputs
from margincast.cli.job import Job, open_job
from margincast.cli.options import Data, InputOptions, OutputOptions, PairOptions
from margincast.recipe.fields import INPUT, OUTPUT, option
from margincast.recipe.recipe import Recipe
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.evaldata.tokens import EncodedEval


@dataclass(frozen=True, kw_only=True)
class KeepOptions(EvalOptions):
    """What is kept of a training run beside its pairs' numbers, and when it stops early."""

    save_model: bool = option(True, "Keep the trained model", OUTPUT)
    effects_budget: int = option(
        4096,
        "Tokens of greedy answers to prompts of the eval data, over all recorded steps together; 0: none",
        INPUT,
        least=0,
    )
    stop_if: list[str] | None = option(
        None,
        'Stop at the first recorded step whose metric is so, as in "effects/kl>0.5"; may be given several times. '
        "Without it the same command goes on from there",
        OUTPUT,
        setting=False,
    )


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
    from margincast.training.stops import stops_of

    job = open_job("train", output, recipe, inputs, pairs, keep, data=data)
    stops_of(keep.stop_if or ())  # refused before any work
    if job.finished and not goes_on(job, keep):
        job.say("This run is already finished (its data are not read again); --no_resume runs it anew.")
        job.done(finished_summary(job))
        return
    recipe.check_trainable()
    job.say_defaults(recipe)
    eval_data = read_eval(keep, inputs, pairs)
    reading = Reading(data, inputs, pairs, recipe.seed, recipe.max_length)
    loaded = load_inputs(job, reading)
    if not loaded.encoding.single_token:
        keep_for_attribution(job, loaded)
    measured = encoded_eval(job, eval_data, loaded, pairs, recipe.max_length)
    job.done(run_training(job, loaded, recipe, keep, measured))


def goes_on(job: Job, keep: KeepOptions) -> bool:
    """Whether a run that has results stopped early, by a condition that is not given any more."""
    from margincast.runs.load import load_run

    stopped = load_run(job.out).summary["results"].get("stopped")
    if stopped is None:
        return False
    if stopped["stop_if"] in (keep.stop_if or ()):
        job.say(f"This run stopped at step {stopped['step']}, as --stop_if says; without it the same command goes on.")
        return False
    return True


def finished_summary(job: Job) -> Json:
    from margincast.report.sections import write_page
    from margincast.runs.layout import REPORT
    from margincast.runs.load import load_run
    from margincast.training.run import forget_state

    summary = load_run(job.out).summary
    if not (job.out / REPORT).is_file():  # stopped after its results, before the page
        write_page(job.out)
    if "stopped" not in summary["results"]:
        forget_state(job.out)
    return summary


def run_training(
    job: Job, inputs: PairInputs, recipe: Recipe, keep: KeepOptions, measured: EncodedEval | None = None
) -> Json:
    """Train, save the run, print its tables. measured: what it is measured on beside its pairs"""
    from margincast.report import tables
    from margincast.report.effects import leave_effects
    from margincast.report.figures import run_curves, save_figure
    from margincast.report.sections import write_page
    from margincast.runs.layout import REFERENCES
    from margincast.runs.save import save_trajectory, trajectory_results, write_summary
    from margincast.training.references import write_references
    from margincast.training.run import forget_state, train_model
    from margincast.training.stops import stopped_at, stops_of
    from margincast.training.watch import Watch

    watch = Watch(eval_data=measured, effects_budget=keep.effects_budget, stop_if=keep.stop_if or ())
    trajectory = train_model(
        inputs.loaded,
        inputs.encoding,
        inputs.features,
        recipe,
        job.out,
        progress=job.progress,
        save_model=keep.save_model,
        keep_state=True,
        watch=watch,
        say=job.say,
    )
    if not job.main:
        return {}
    rows = save_trajectory(job.out, trajectory)
    if inputs.encoding.eos:  # without that token they are of other responses than TRL's
        write_references(job.out / REFERENCES, inputs.features, inputs.encoding)
    save_figure(run_curves(trajectory), job.out / "figures", "curves")
    stopped = stopped_at(stops_of(watch.stop_if), rows[-1], recipe.for_pairs(len(inputs.train)).steps)
    results = {**trajectory_results(trajectory, rows, job.seconds), **stopped}
    leave_effects(job.out, rows)
    summary = write_summary(job.out, "train", job.config, results, **inputs.sections())
    write_page(job.out)
    if not stopped:
        forget_state(job.out)
    job.table(f"{trajectory.origin}".capitalize(), tables.STEP_HEADER, tables.step_rows(rows))
    job.table(f"Step {trajectory.steps[-1]}", tables.CONCEPT_HEADER, tables.concept_rows(results["concepts"]))
    say_effects(job, rows, results)
    if stopped:
        job.say(f"Stopped early: {stopped['stopped']['reason']}. Without it the same command goes on from there.")
    return summary
