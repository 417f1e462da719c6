"""margincast demo"""

from __future__ import annotations

import dataclasses
from typing import Any

from margincast.cli import options as opt
from margincast.cli.compare import run_comparison
from margincast.cli.forecast import run_forecast
from margincast.cli.inputs import PairInputs, load_inputs
from margincast.cli.inspect import run_inspection
from margincast.cli.job import Job, open_job
from margincast.cli.train import run_training

SETTINGS: dict[str, Any] = {
    "data": "traits",
    "model": "smollm2",
    "revision": None,
    "dtype": "float32",
    "device": "cpu",
    "trust_remote_code": False,
    "concept_column": None,
    "on_bad_row": "fail",
    "eos": None,
    "max_length": 1024,
    # The packaged concepts have 60 statements each: a quarter held out leaves 15 to judge a concept by.
    "holdout": 0.25,
}
RUN_SETTINGS: dict[str, Any] = {
    "beta": 0.01,
    "loss_type": "sigmoid",
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
    "eval_steps": 10,
}
TRAINING_SETTINGS: dict[str, Any] = {
    "gradient_checkpointing": False,
    "bf16": False,
    "record_train": 120,
    "report_to": "none",
    "save_model": False,
}
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


def demo(
    max_steps: opt.MaxSteps = 30,
    seed: opt.Seed = 1234,
    cache_dir: opt.CacheDir = None,
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """The whole story on packaged data and a small real model: inspect, forecast, train, compare, report.

    Example: margincast demo --out runs/demo
    """
    job = open_job("demo", {**SETTINGS, **locals()})
    inputs = load_inputs(job, None, cache_dir)
    steps = {"max_steps": max_steps}
    runs: dict[str, Job] = {}
    for stage, settings in {
        "forecast": {**RUN_SETTINGS, **steps, "learning_rate": 1e-3},
        "train-head": {
            **RUN_SETTINGS,
            **TRAINING_SETTINGS,
            **steps,
            "learning_rate": 1e-3,
            "train": "head",
            "record_train": 0,
        },
        "train-all": {**RUN_SETTINGS, **TRAINING_SETTINGS, **steps, "learning_rate": 1e-5, "train": "all"},
    }.items():
        runs[stage] = job.stage(stage, stage.partition("-")[0], **settings)
    heading(job, "inspect")
    run_inspection(job.stage("inspect", "inspect"), inputs)
    heading(job, "forecast")
    run_forecast(runs["forecast"], inputs)
    for what in ("head", "all"):
        heading(job, f"train-{what}")
        training = runs[f"train-{what}"]
        if not training.finished:
            run_training(training, fresh(inputs, cache_dir))
        heading(job, f"compare-{what}")
        pair = {"a": str(runs["forecast"].out), "b": str(training.out)}
        run_comparison(job.stage(f"compare-{what}", "compare", **pair), runs["forecast"].out, training.out)
    finish(job, inputs)


def fresh(inputs: PairInputs, cache_dir: Any) -> PairInputs:
    """The same inputs with an untrained model: training changes the model it is given."""
    from margincast.models import load_model
    from margincast.models.load import default_cache_dir

    loaded = load_model(SETTINGS["model"], cache_dir=cache_dir or default_cache_dir())
    return dataclasses.replace(inputs, loaded=loaded)


def finish(job: Job, inputs: PairInputs) -> None:
    from margincast.report.sections import page_of
    from margincast.runs.save import write_summary
    from margincast.runs.store import write_text

    results = {"stages": STAGES, "seconds": job.seconds}
    summary = write_summary(job.out, "demo", job.config, results, **inputs.sections(job.config))
    write_text(job.out / "report.html", page_of(job.out))
    job.say(f"Open the report: {job.out / 'report.html'}")
    job.done(summary)


def heading(job: Job, stage: str) -> None:
    job.say(f"\n{stage.replace('-', ' ').upper()}\n{STAGES[stage]}\n")
