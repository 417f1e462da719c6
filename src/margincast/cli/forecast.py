"""margincast forecast"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.cli.effects import EvalOptions, eval_inputs, read_eval, say_effects
from margincast.cli.inputs import PairInputs, PositionInputs, Reading, read_inputs, with_features, with_kept_positions
from margincast.cli.job import Job, open_job
from margincast.cli.memory import MemoryOptions, say_memory
from margincast.cli.options import CheckedOutput, Data, InputOptions, PairOptions
from margincast.errors import InputError
from margincast.recipe.fields import option
from margincast.recipe.recipe import Recipe
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.evaldata.features import EvalFeatures
    from margincast.records import Trajectory


@dataclass(frozen=True, kw_only=True)
class FittedOptions:
    """What a forecast takes that is not exact: of training all weights, or an adapter."""

    pilot: str | None = option(
        None,
        "Steps or a share of them to train for real, or the folder of a run; 0 trains nothing at all "
        "[default: none, beside a rehearsal]. Not with --train head",
    )
    rehearsal: float = option(
        0.1, "Share of the training's pairs for a quick run at larger steps. Not with --train head", least=0.0, most=1.0
    )
    sweep: str | None = option(
        None,
        "Compare values of a setting without a pilot, as in learning_rate=5e-6,1e-5,2e-5. Not with --train head",
    )
    calibration: Path | None = option(
        None,
        "File of `margincast calibrate` [default: the nearest in the cache, else the package's]. Not with --train head",
    )
    backbone: str | None = option(
        None,
        "Goes with the next release: frozen is --train head, trained is --train all or lora",
        choices=lambda: ("frozen", "trained"),
        setting=False,
    )


def forecast(
    data: Data,
    recipe: Recipe,
    fitted: FittedOptions,
    inputs: InputOptions,
    pairs: PairOptions,
    eval_options: EvalOptions,
    memory: MemoryOptions,
    output: CheckedOutput,
) -> None:
    """Forecast margins, loss and accuracy per concept before any training, of the run that `train` would be.

    Exact with --train head, for a frozen backbone: the same numbers as `margincast train --train head`. Of training
    all weights (the default) or a LoRA adapter, with 90% intervals.

    Example: margincast forecast persona:k2 --learning_rate 1e-5 --max_steps 40
    """
    recipe = _by_backbone(recipe, fitted)
    reading = Reading(data, inputs, pairs, recipe.seed, recipe.max_length)
    if recipe.train != "head":
        from margincast.cli.trained import forecast_trained

        if eval_options.eval_data:
            raise InputError(
                f"--eval_data: what else changes is foreseen with --train head alone; of --train {recipe.train} "
                "`margincast train --eval_data` measures it"
            )
        forecast_trained(reading, recipe, fitted, output)
        return
    _refuse_fitted(recipe, fitted)
    job = open_job("forecast", output, recipe, inputs, pairs, eval_options, data=data)
    job.say_defaults(recipe)
    eval_data = read_eval(eval_options, inputs, pairs)
    read = read_inputs(job, reading)
    measured = eval_inputs(job, eval_data, read, pairs, recipe.max_length)
    if read.encoding.single_token:
        job.done(run_forecast(job, with_features(job, read), recipe, measured))
        return
    from margincast.frozen.tokens.forecast import default_dtype

    say_memory(job, read, recipe, default_dtype(recipe), memory.memory_limit)
    job.done(run_forecast(job, with_kept_positions(job, read), recipe, measured))


def _by_backbone(recipe: Recipe, fitted: FittedOptions) -> Recipe:
    if fitted.backbone == "frozen" and recipe.train == "lora":
        raise InputError("--backbone frozen trains the unembedding alone; with --train lora leave it out")
    if fitted.backbone == "trained" and recipe.train == "head":
        raise InputError("--backbone trained trains more than the unembedding; with --train head leave it out")
    return replace(recipe, train="head") if fitted.backbone == "frozen" else recipe


def _refuse_fitted(recipe: Recipe, fitted: FittedOptions) -> None:
    """Raises `InputError` where something was given that an exact forecast does not have."""
    for name in ("pilot", "rehearsal", "sweep", "calibration"):
        if getattr(fitted, name) != getattr(FittedOptions, name):
            raise InputError(f"--{name} is of forecasts that are not exact; with --train head leave it out")
    if recipe.bf16:
        raise InputError("--bf16 rounds what an exact forecast does not; with --train head leave it out")


def run_forecast(
    job: Job, inputs: PairInputs | PositionInputs, recipe: Recipe, measured: EvalFeatures | None = None
) -> Json:
    """Forecast exactly, save the run, print its tables. measured: what else is to be foreseen on"""
    from margincast.decision import verdict
    from margincast.frozen.forecast import forecast_frozen
    from margincast.frozen.tokens.forecast import TokenForecast, forecast_positions
    from margincast.report import profile, tables
    from margincast.report.effects import leave_effects
    from margincast.report.figures import run_curves, save_figure
    from margincast.report.sections import write_page
    from margincast.report.verdict import verdict_lines
    from margincast.runs.save import save_trajectory, trajectory_results, write_summary

    if isinstance(inputs, PairInputs):
        trajectory: Trajectory = forecast_frozen(inputs.features, recipe, eval_features=measured)
    else:
        trajectory = forecast_positions(inputs.positions, recipe, progress=job.progress, eval_features=measured)
    rows = save_trajectory(job.out, trajectory)
    save_figure(run_curves(trajectory), job.out / "figures", "curves")
    leave_effects(job.out, rows)
    results = trajectory_results(trajectory, rows, job.seconds)
    if isinstance(trajectory, TokenForecast):
        results["length"] = profile.leave_profile(trajectory.reward_profile(), job.out)
    results["verdict"] = verdict(trajectory, results.get("length")).as_dict()
    summary = write_summary(job.out, "forecast", job.config, results, **inputs.sections())
    write_page(job.out)
    for line in verdict_lines(results["verdict"]):
        job.say(line)
    job.say(f"This is a {trajectory.origin}.")
    if trajectory.error is not None:
        job.say(f"Numerical error of any margin: at most {trajectory.error:.1g}.")
    job.table("", tables.STEP_HEADER, tables.step_rows(rows))
    job.table(f"Step {trajectory.steps[-1]}", tables.CONCEPT_HEADER, tables.concept_rows(results["concepts"]))
    say_effects(job, rows, results)
    if "length" in results:
        title = "Margins, and what they owe to length"
        job.table(title, profile.PROFILE_HEADER, profile.profile_rows(results["length"]))
        for text in profile.read_profile(results["length"]):
            job.say(text)
    return summary
