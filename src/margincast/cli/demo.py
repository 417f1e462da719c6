"""margincast demo"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from margincast.cli.compare import run_comparison
from margincast.cli.forecast import run_forecast
from margincast.cli.inputs import PairInputs, Reading, load_inputs
from margincast.cli.inspect import run_inspection
from margincast.cli.job import Job, open_job
from margincast.cli.options import InputOptions, OutputOptions, PairOptions, same
from margincast.cli.train import KeepOptions, run_training
from margincast.recipe.fields import option
from margincast.recipe.recipe import Recipe

DATA = "traits"
# The packaged concepts have 60 statements each: a quarter held out leaves 15 to judge a concept by.
PAIRS = PairOptions(holdout=0.25)
STAGES = {
    "inspect": "First look: the data set `traits` holds 8 traits, each with sentences that describe it and sentences "
    "that do not. Before any training, what does the model make of them?",
    "forecast": "Then the forecast: how would every margin move if only the model's last layer (its unembedding) were "
    "trained? It takes seconds and no training.",
    "train-head": "Then the same for real: that layer trained with PyTorch, on the same batches.",
    "compare-head": "Was the forecast right? Pair by pair:",
    "train-all": "Now what people do: every weight is trained (full fine-tuning, with a smaller learning rate).",
    "compare-all": "How does full fine-tuning differ from the frozen-backbone forecast?",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What of the story can be chosen."""

    max_steps: int = option(30, "Optimizer steps", least=1)
    seed: int = same(Recipe, "seed")
    cache_dir: Path | None = same(InputOptions, "cache_dir")


def demo(options: DemoOptions, output: OutputOptions) -> None:
    """The whole story on packaged data and a small real model: inspect, forecast, train, compare, report.

    Example: margincast demo --out runs/demo
    """
    inputs = InputOptions(cache_dir=options.cache_dir)
    head = Recipe(train="head", learning_rate=1e-3, max_steps=options.max_steps, seed=options.seed)
    recipes = {
        "forecast": head,
        "train-head": head,
        "train-all": Recipe(record_train=120, max_steps=options.max_steps, seed=options.seed),
    }
    job = open_job("demo", output, options, inputs, PAIRS, data=DATA)
    read = load_inputs(job, Reading(DATA, inputs, PAIRS, head.seed, head.max_length))
    keep = KeepOptions(save_model=False)

    def stage(name: str) -> Job:
        """Begun when it is needed: its seconds count from here."""
        return job.stage(name, name.partition("-")[0], recipes[name], inputs, PAIRS, keep, data=DATA)

    heading(job, "inspect")
    run_inspection(job.stage("inspect", "inspect", inputs, PAIRS, data=DATA), read)
    heading(job, "forecast")
    forecast = stage("forecast")
    run_forecast(forecast, read, head)
    for name in ("train-head", "train-all"):
        heading(job, name)
        training = stage(name)
        if not training.finished:
            run_training(training, fresh(read), recipes[name], keep)
        comparison = name.replace("train", "compare")
        heading(job, comparison)
        pair = {"a": str(forecast.out), "b": str(training.out)}
        run_comparison(job.stage(comparison, "compare", **pair), forecast.out, training.out)
    finish(job, read)


def fresh(inputs: PairInputs) -> PairInputs:
    """The same inputs with an untrained model: training changes the model it is given."""
    return dataclasses.replace(inputs, loaded=inputs.options.loaded())


def finish(job: Job, inputs: PairInputs) -> None:
    from margincast.report.sections import page_of
    from margincast.runs.save import write_summary
    from margincast.runs.store import write_text

    results = {"stages": STAGES, "seconds": job.seconds}
    summary = write_summary(job.out, "demo", job.config, results, **inputs.sections())
    write_text(job.out / "report.html", page_of(job.out))
    job.say(f"Open the report: {job.out / 'report.html'}")
    job.done(summary)


def heading(job: Job, stage: str) -> None:
    job.say(f"\n{stage.replace('-', ' ').upper()}\n{STAGES[stage]}\n")
