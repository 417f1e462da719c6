"""margincast calibrate"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from margincast.cli.job import Job, config_of
from margincast.cli.options import InputOptions, PairOptions
from margincast.errors import InputError
from margincast.recipe.fields import OUTPUT, option
from margincast.recipe.recipe import Recipe

EVERY = "every kind of DATA that `train` takes; several of them measure the error on data left out"


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """How long it may take, and where the calibration goes."""

    budget: float | None = option(
        None, "Minutes that the runs may take, by what the first takes [default: all planned runs]", positive=True
    )
    out: Path | None = option(
        None, "File of the calibration, to share [default: in the cache, for this model]", OUTPUT, setting=False
    )
    json: bool = option(False, "Print the summary as JSON and nothing else", OUTPUT, setting=False)
    quiet: bool = option(False, "Print nothing but errors", OUTPUT, setting=False)


def calibrate(
    data: Annotated[list[str], typer.Argument(help=EVERY)],
    recipe: Recipe,
    inputs: InputOptions,
    pairs: PairOptions,
    options: CalibrateOptions,
) -> None:
    """Make a few true runs of a model and fit the constants of its forecasts to them, the package's as a prior.

    Interrupted and started again it goes on. `forecast` then uses the calibration by itself, or by --calibration FILE.

    Example: margincast calibrate persona:k1 traits --budget 30 --max_steps 40
    """
    from margincast.data import load_pairs
    from margincast.runs.save import write_summary
    from margincast.trained.calibrate import calibrate as calibrated

    if len(set(data)) < len(data):
        raise InputError("a data set is named twice")
    recipe.check_trainable()
    if options.out is not None and options.out.is_dir():
        raise InputError(f"--out {options.out} is a folder; calibrate writes a file")
    config = config_of(recipe, inputs, pairs, options, data=list(data))
    begun = time.monotonic()
    splits = {}
    for name in data:
        read = load_pairs(
            name, persona_dir=inputs.persona_dir, concept_column=pairs.concept_column, heldout=pairs.heldout,
            prompt_column=pairs.prompt_column, chosen_column=pairs.chosen_column,
            rejected_column=pairs.rejected_column, on_bad_row=pairs.on_bad_row,
        )  # fmt: skip
        splits[name] = read.split(pairs.holdout, recipe.seed, allow_leakage=pairs.allow_leakage)
    job = Job("calibrate", config, Path(), options.json, options.quiet, finished=False)
    made = calibrated(
        splits, inputs.loaded(), recipe, budget=options.budget, out=options.out, eos=pairs.eos,
        cache_dir=inputs.cache, progress=job.progress, say=job.say,
    )  # fmt: skip
    job.out = Path(made.runs[0]["folder"]).parent
    results = {
        "runs": list(made.runs),
        "error": made.calibration.error,
        "calibration": str(made.path),
        "seconds": time.monotonic() - begun,
    }
    world = made.calibration.world
    model = {"id": world.model, "revision": inputs.revision, "hash": world.model_hash}
    summary = write_summary(job.out, "calibrate", config, results, model=model)
    for line in in_words(made.calibration.error):
        job.say(line)
    job.say(f"Calibration: {made.path}")
    job.done(summary)


def in_words(error: dict[str, object]) -> list[str]:
    """What `Calibration.error` says."""
    lines = [
        f"Leaving {error['left_out']} out: accuracies missed by {error['accuracy_median']:.1f} points in the median, "
        f"margins by {error['margin_relative']:.0%}, Spearman {error['spearman']:.2f}."
    ]
    if error["left_out"] == "runs":
        lines.append("One data set: its error on other data is not known.")
    floor = error["floor"]
    if isinstance(floor, dict):
        lines.append(
            f"Twins differ by {floor['accuracy_median']:.1f} points, {floor['margin_relative']:.0%} and have Spearman "
            f"{floor['spearman']:.2f}."
        )
    return lines
