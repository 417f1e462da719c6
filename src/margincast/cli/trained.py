"""margincast forecast of training all weights, or an adapter"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.cli.forecast import FittedOptions
from margincast.cli.inputs import PairInputs, Reading, read_inputs, with_features
from margincast.cli.job import Job, config_of, open_job
from margincast.cli.options import OutputOptions, parse_sweep
from margincast.cli.train import KeepOptions
from margincast.errors import InputError
from margincast.recipe.recipe import Recipe
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.records import Trajectory
    from margincast.trained.calibration import Calibration
    from margincast.trained.rehearsal import Rehearsal

SWEPT = {"learning_rate": float, "beta": float, "max_steps": int, "per_device_train_batch_size": int}


@dataclass(frozen=True)
class Pilot:
    """What --pilot says: steps to train, a run that was read, or nothing. `trains`: whether to train at all."""

    steps: int = 0
    run: Trajectory | None = None
    trains: bool = True


@dataclass(frozen=True)
class Beforehand:
    """What a fitted forecast does before it is one.

    rehearsal: share of the training's pairs, 0 for none;  swept: a setting and its values
    """

    pilot: Pilot
    rehearsal: float
    swept: tuple[str, list[Any]] | None = None
    calibration: Calibration | None = None


def forecast_trained(reading: Reading, recipe: Recipe, fitted: FittedOptions, output: OutputOptions) -> None:
    from margincast.trained.calibration import Calibration
    from margincast.trained.inputs import check_recipe

    job = open_job("forecast", output, recipe, fitted, reading.options, reading.pairs, data=reading.data)
    check_recipe(recipe)
    pilot = read_pilot(fitted.pilot, recipe.max_steps)
    # Only a pilot reports to trackers and steps as the run does; who forecasts a run need not have what that takes.
    alone = replace(recipe, report_to="none", optimizer=recipe.rule.in_forecasts)
    (recipe if pilot.steps else alone).check_trainable()
    calibration = None if fitted.calibration is None else Calibration.read(fitted.calibration)
    rehearsal = fitted.rehearsal if pilot.trains else 0.0
    beforehand = Beforehand(pilot, rehearsal, read_sweep(fitted.sweep, pilot), calibration)
    job.say_defaults(recipe)
    inputs = read_inputs(job, reading, recipe.loss)
    unrehearsed = not beforehand.rehearsal  # a rehearsal of many tokens has no use for inner layers
    deep = with_features(job, inputs, layers=inputs.encoding.single_token or unrehearsed)
    job.done(run_trained(job, deep, recipe.for_pairs(len(inputs.train)), beforehand, reading))


def read_sweep(text: str | None, pilot: Pilot) -> tuple[str, list[Any]] | None:
    """The setting that is varied, and its values. Raises `InputError`."""
    if text is None:
        return None
    if pilot.steps or pilot.run is not None:
        raise InputError("--sweep is of other settings than the pilot's; leave --pilot out, or give --pilot 0")
    swept = parse_sweep(text, SWEPT, "learning_rate=1e-5,2e-5")
    if not all(value > 0 for value in swept[1]):
        raise InputError(f"--sweep {text}: values of {swept[0]} are positive")
    return swept


def read_pilot(text: str | None, max_steps: int | None) -> Pilot:
    """`--pilot` as steps, a share of them, or a run. Raises `InputError` for anything else."""
    from margincast.runs.load import load_run

    if text is None:
        return Pilot()
    if Path(text).is_dir():
        return Pilot(run=load_run(Path(text)).trajectory)
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"--pilot {text}: give a number of steps, a share below 1, or the folder of a run") from error
    if value == 0:
        return Pilot(trains=False)
    if max_steps is None:
        raise InputError("--pilot counts steps; give --max_steps in place of --num_train_epochs")
    steps = round(value * max_steps) if value < 1 else int(value)
    if (
        not math.isfinite(value)
        or value < 0
        or steps != max(steps, 1)
        or steps > max_steps
        or value not in (steps, value % 1)
    ):
        raise InputError(f"--pilot {text}: give from 1 to {max_steps} steps, a share below 1, or the folder of a run")
    return Pilot(steps)


def run_trained(job: Job, inputs: PairInputs, recipe: Recipe, beforehand: Beforehand, reading: Reading) -> Json:
    """Rehearse, train the pilot, forecast; save the run, print its tables."""
    from margincast.decision import verdict
    from margincast.decision.decide import best_of
    from margincast.report.figures import save_figure
    from margincast.report.sections import write_page
    from margincast.report.trained import band_curves, trained_results
    from margincast.runs.save import save_trajectory, trajectory_results, write_summary
    from margincast.runs.store import write_tensors
    from margincast.trained.answers import more_pairs
    from margincast.trained.forecast import forecast_trained

    swept = beforehand.swept
    rehearsal = rehearsed(job, inputs, recipe, beforehand.rehearsal) if beforehand.rehearsal > 0.0 else None
    pilot = pilot_of(job, inputs, recipe, beforehand.pilot, reading)
    trajectory = forecast_trained(
        inputs.features, recipe, rehearsal=rehearsal, pilot=pilot,
        calibration=beforehand.calibration, cache_dir=inputs.options.cache,
    )  # fmt: skip
    pairs = more_pairs(inputs.features, recipe, trajectory)
    sweep = None if swept is None else sweep_rows(inputs, recipe, rehearsal, swept, trajectory.validity.calibration)
    rows = save_trajectory(job.out, trajectory)
    write_tensors(job.out / "intervals.safetensors", trajectory.interval_tensors)
    save_figure(band_curves(trajectory), job.out / "figures", "curves")
    results = {
        **trajectory_results(trajectory, rows, job.seconds),
        **trained_results(trajectory, pairs),
        "sweep": sweep,
        **({} if rehearsal is None else {"rehearsal": rehearsal_size(recipe, beforehand.rehearsal, rehearsal)}),
        "verdict": verdict(trajectory).as_dict(),
    }
    if swept is not None and sweep is not None:
        results["verdict"]["sweep"] = best_of(swept[0], sweep)
    summary = write_summary(job.out, "forecast", job.config, results, **inputs.sections())
    write_page(job.out)
    say_trained(job, trajectory, results, None if swept is None else swept[0])
    return summary


def rehearsal_size(recipe: Recipe, share: float, rehearsal: Rehearsal) -> Json:
    """`results.rehearsal`: its steps, and the distinct pairs that it saw."""
    from margincast.trained.rehearsal import size_of

    return {"steps": size_of(recipe, share)[0], "pairs": rehearsal.pairs}


def say_trained(job: Job, trajectory: Trajectory, results: Json, swept: str | None) -> None:
    """Print the tables and answers."""
    from margincast.report import tables
    from margincast.report.trained import answers_in_words
    from margincast.report.verdict import verdict_lines

    for line in verdict_lines(results["verdict"]):
        job.say(line)
    end = trajectory.steps[-1]
    fitted = "" if "order" in results else ": intervals are as wide as its error against runs left out of the fit"
    job.say(f"This is a {trajectory.origin}. It is not exact{fitted}.")
    job.table("", tables.BAND_HEADER, tables.band_rows(trajectory.steps, results))
    job.table(f"Step {end}", tables.TRAINED_HEADER, tables.concept_rows(results["concepts"]))
    if swept is not None:
        job.table(f"By {swept}", (swept, *tables.SWEEP_HEADER), tables.sweep_rows(swept, results["sweep"]))
    for sentence in answers_in_words(results, end):
        job.say(sentence)


def rehearsed(job: Job, inputs: PairInputs, recipe: Recipe, share: float) -> Rehearsal:
    """The rehearsal of the run, kept in the job's folder: an interrupted forecast does not rehearse again."""
    import torch
    from safetensors.torch import load_file

    from margincast.features.cache import tokens_key
    from margincast.runs.store import key_of, write_tensors
    from margincast.trained.rehearsal import Rehearsal, rehearse, size_of

    path = job.out / "rehearsal.safetensors"
    tokens = [tokens_key(inputs.encoding.select(pairs).rows) for pairs in (inputs.train, inputs.heldout)]
    key = key_of([job.config, inputs.loaded.hash, tokens])
    if path.is_file():
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            same = (file.metadata() or {}).get("key") == key
        if same:
            kept = load_file(path)
            return Rehearsal(kept["heldout"], int(kept["pairs"]))
    steps, batch = size_of(recipe, share)
    rehearsal = rehearse(
        inputs.loaded, inputs.encoding, inputs.features, recipe, steps, batch, seed=recipe.seed, progress=job.progress
    )
    write_tensors(path, {"heldout": rehearsal.heldout, "pairs": torch.tensor(rehearsal.pairs)}, {"key": key})
    return rehearsal


def pilot_of(job: Job, inputs: PairInputs, recipe: Recipe, pilot: Pilot, reading: Reading) -> Trajectory | None:
    """The first steps of the run itself: read from a folder, or trained in `pilot/`, from where `train` goes on."""
    if not pilot.steps:
        return pilot.run
    from margincast.runs.load import load_run
    from margincast.training.run import train_model

    config = config_of(recipe, reading.options, reading.pairs, KeepOptions(), data=reading.data)
    stage = Job("train", config, job.out / "pilot", json=False, quiet=job.quiet, finished=False)
    if (stage.out / "summary.json").is_file():  # which has been gone on with, to its end
        return load_run(stage.out).trajectory
    stage.write_config()
    trained = train_model(
        inputs.loaded, inputs.encoding, inputs.features, recipe, stage.out, progress=job.progress,
        save_model=True, stop_after=pilot.steps,
    )  # fmt: skip
    job.say(
        f"Pilot of {pilot.steps} steps. To go on with it: margincast train {reading.data} --config "
        f"{stage.out}/config.yaml --out {stage.out}"
    )
    return trained


def sweep_rows(
    inputs: PairInputs, recipe: Recipe, rehearsal: Rehearsal | None, swept: tuple[str, list[Any]],
    calibration: Calibration,
) -> list[Json]:  # fmt: skip
    """The end of the run by every value of the setting, from one rehearsal."""
    from margincast.trained.answers import stops_rising
    from margincast.trained.forecast import forecast_trained, rescaled

    name, values = swept
    rows = []
    for value in values:
        changed = replace(recipe, **{name: value})
        scaled = (
            None if rehearsal is None else rescaled(rehearsal, inputs.features, recipe, changed, calibration.constants)
        )
        forecast = forecast_trained(inputs.features, changed, rehearsal=scaled, calibration=calibration)
        rows.append(
            {
                name: value,
                "heldout_accuracy": forecast.bands[""].accuracy[-1].as_dict(),
                "heldout_margin": forecast.bands[""].margin[-1].as_dict(),
                "stops_rising": stops_rising(forecast).as_dict(),
                "beyond": forecast.beyond,
            }
        )
    return rows
