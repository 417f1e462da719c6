"""margincast forecast --backbone trained"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.cli.inputs import PairInputs, check_settings, read_inputs, with_features
from margincast.cli.job import NOT_SETTINGS, Job, open_job
from margincast.cli.options import parse_sweep
from margincast.cli.train import train, training_settings
from margincast.errors import InputError

if TYPE_CHECKING:
    from margincast.recipe.settings import TrainingSettings
    from margincast.records import Trajectory
    from margincast.trained.rehearsal import Rehearsal

SWEPT = {"learning_rate": float, "beta": float, "max_steps": int, "per_device_train_batch_size": int}


@dataclass(frozen=True)
class PilotOption:
    """What --pilot says: steps to train, a run that was read, or nothing. `trains`: whether to train at all."""

    steps: int = 0
    run: Trajectory | None = None
    trains: bool = True


def forecast_trained(parameters: dict[str, Any], persona_dir: Path | None, cache_dir: Path | None) -> None:
    from margincast.trained.forecast import check_settings as check_trained

    job = open_job("forecast", parameters)
    check_settings(job.config)
    settings = training_settings(train_config(job.config))
    check_trained(settings)
    pilot = read_pilot(job.config["pilot"], settings.max_steps)
    swept = None
    if job.config["sweep"] is not None:
        if pilot.steps or pilot.run is not None:
            raise InputError("--sweep is of other settings than the pilot's; leave --pilot out, or give --pilot 0")
        swept = parse_sweep(job.config["sweep"], SWEPT, "learning_rate=1e-5,2e-5")
        if not all(value > 0 for value in swept[1]):
            raise InputError(f"--sweep {job.config['sweep']}: values of {swept[0]} are positive")
    if job.config["rehearsal"] > 0.0 and round(job.config["rehearsal"] * settings.max_steps) < 1:
        raise InputError(f"--rehearsal {job.config['rehearsal']:g} of {settings.max_steps} steps is less than one step")
    inputs = read_inputs(job, persona_dir, cache_dir)
    deep = with_features(job, inputs, cache_dir, layers=inputs.encoding.single_token)
    job.done(run_trained(job, deep, settings, pilot, swept))


def train_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of `margincast train` for the run that is forecast, with its defaults for what a forecast lacks."""
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    names = set(defaults) - NOT_SETTINGS - {"train_what"}
    return {name: config.get(name, defaults[name]) for name in names} | {"train": config["train"]}


def read_pilot(text: str | None, max_steps: int) -> PilotOption:
    """`--pilot` as steps, a share of them, or a run. Raises `InputError` for anything else."""
    from margincast.runs.load import load_run

    if text is None:
        return PilotOption()
    if Path(text).is_dir():
        return PilotOption(run=load_run(Path(text)).trajectory)
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"--pilot {text}: give a number of steps, a share below 1, or the folder of a run") from error
    if value == 0:
        return PilotOption(trains=False)
    steps = round(value * max_steps) if value < 1 else int(value)
    if (
        not math.isfinite(value)
        or value < 0
        or steps != max(steps, 1)
        or steps > max_steps
        or value not in (steps, value % 1)
    ):
        raise InputError(f"--pilot {text}: give from 1 to {max_steps} steps, a share below 1, or the folder of a run")
    return PilotOption(steps)


def run_trained(
    job: Job, inputs: PairInputs, settings: TrainingSettings, pilot: PilotOption,
    swept: tuple[str, list[Any]] | None,
) -> dict[str, Any]:  # fmt: skip
    """Rehearse, train the pilot, forecast; save the run, print its tables."""
    from margincast.report import tables
    from margincast.report.figures import save_figure
    from margincast.report.sections import write_page
    from margincast.report.trained import answers_in_words, band_curves, trained_results
    from margincast.runs.save import save_trajectory, trajectory_results, write_summary
    from margincast.runs.store import write_tensors
    from margincast.trained.answers import more_pairs
    from margincast.trained.forecast import forecast_trained

    rehearsal = rehearsed(job, inputs, settings) if pilot.trains and job.config["rehearsal"] > 0.0 else None
    seen = pilot_of(job, inputs, settings, pilot)
    trajectory = forecast_trained(inputs.features, settings, rehearsal=rehearsal, pilot=seen)
    pairs = more_pairs(inputs.features, settings, trajectory)
    sweep = None if swept is None else sweep_rows(inputs, settings, rehearsal, swept)
    save_trajectory(job.out, trajectory)
    write_tensors(job.out / "intervals.safetensors", {"heldout_low": trajectory.low, "heldout_high": trajectory.high})
    save_figure(band_curves(trajectory), job.out / "figures", "curves")
    results = {**trajectory_results(trajectory, job.seconds), **trained_results(trajectory, pairs), "sweep": sweep}
    summary = write_summary(job.out, "forecast", job.config, results, **inputs.sections(job.config))
    write_page(job.out)
    job.say(f"This is a {trajectory.origin}. It is not exact: intervals are as wide as runs were missed so far.")
    job.table("", tables.BAND_HEADER, tables.band_rows(trajectory.steps, results))
    job.table(f"Step {settings.max_steps}", tables.TRAINED_HEADER, tables.concept_rows(results["concepts"]))
    if sweep is not None and swept is not None:
        job.table(f"By {swept[0]}", (swept[0], *tables.SWEEP_HEADER), tables.sweep_rows(swept[0], sweep))
    for sentence in answers_in_words(results, settings.max_steps):
        job.say(sentence)
    return summary


def rehearsed(job: Job, inputs: PairInputs, settings: TrainingSettings) -> Rehearsal:
    """The rehearsal of the run, kept in the job's folder: an interrupted forecast does not rehearse again."""
    import torch
    from safetensors.torch import load_file

    from margincast.runs.store import key_of, write_tensors
    from margincast.trained.rehearsal import Rehearsal, rehearse, size_of

    path = job.out / "rehearsal.safetensors"
    key = key_of([job.config, inputs.loaded.hash, inputs.train.fingerprint, inputs.heldout.fingerprint])
    if path.is_file():
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            same = (file.metadata() or {}).get("key") == key
        if same:
            kept = load_file(path)
            return Rehearsal(kept["heldout"], int(kept["pairs"]))
    steps, batch = size_of(settings, job.config["rehearsal"])
    made = rehearse(
        inputs.loaded, inputs.encoding, inputs.features, settings, steps, batch, seed=settings.seed,
        progress=job.progress,
    )  # fmt: skip
    write_tensors(path, {"heldout": made.heldout, "pairs": torch.tensor(made.pairs)}, {"key": key})
    return made


def pilot_of(job: Job, inputs: PairInputs, settings: TrainingSettings, pilot: PilotOption) -> Trajectory | None:
    """The first steps of the run itself: read from a folder, or trained in `pilot/`, from where `train` goes on."""
    if not pilot.steps:
        return pilot.run
    from margincast.runs.load import load_run
    from margincast.training.run import train_model

    stage = Job("train", train_config(job.config), job.out / "pilot", json=False, quiet=job.quiet, finished=False)
    if (stage.out / "summary.json").is_file():  # which has been gone on with, to its end
        return load_run(stage.out).trajectory
    stage.write_config()
    seen = train_model(
        inputs.loaded, inputs.encoding, inputs.features, settings, stage.out, progress=job.progress,
        save_model=True, stop_after=pilot.steps,
    )  # fmt: skip
    job.say(
        f"Pilot of {pilot.steps} steps. To go on with it: margincast train {job.config['data']} --config "
        f"{stage.out}/config.yaml --out {stage.out}"
    )
    return seen


def sweep_rows(
    inputs: PairInputs, settings: TrainingSettings, rehearsal: Rehearsal | None, swept: tuple[str, list[Any]]
) -> list[dict[str, Any]]:
    """The end of the run by every value of the setting, from one rehearsal."""
    from margincast.trained.answers import stops_rising
    from margincast.trained.forecast import forecast_trained, rescaled

    name, values = swept
    rows = []
    for value in values:
        other = replace(settings, **{name: value})
        told = None if rehearsal is None else rescaled(rehearsal, inputs.features, settings, other)
        made = forecast_trained(inputs.features, other, rehearsal=told)
        rows.append(
            {
                name: value,
                "heldout_accuracy": made.bands[""].accuracy[-1].as_dict(),
                "heldout_margin": made.bands[""].margin[-1].as_dict(),
                "stops_rising": stops_rising(made).as_dict(),
                "beyond": made.beyond,
            }
        )
    return rows
