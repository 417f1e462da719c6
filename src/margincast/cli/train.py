"""margincast train"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margincast.cli import options as opt
from margincast.cli.inputs import PairInputs, check_settings, load_inputs
from margincast.cli.job import Job, open_job

if TYPE_CHECKING:
    from margincast.recipe.settings import TrainingSettings


def train(
    data: opt.Data,
    train_what: Annotated[
        opt.TrainWhat,
        typer.Option(
            "--train",
            help="all weights, the unembedding (head) alone, or a LoRA adapter (lora)",
            rich_help_panel=opt.TRAINING,
        ),
    ] = opt.TrainWhat.all,
    model: opt.Model = "smollm2",
    revision: opt.Revision = None,
    dtype: opt.DtypeOption = opt.Dtype.float32,
    device: opt.Device = "cpu",
    trust_remote_code: opt.TrustRemoteCode = False,
    persona_dir: opt.PersonaDir = None,
    cache_dir: opt.CacheDir = None,
    concept_column: opt.ConceptColumn = None,
    on_bad_row: opt.OnBadRowOption = opt.OnBadRow.fail,
    eos: opt.Eos = None,
    max_length: opt.MaxLength = 1024,
    holdout: opt.Holdout = 0.1,
    seed: opt.Seed = 1234,
    beta: opt.Beta = 0.01,
    loss_type: opt.LossType = "sigmoid",
    label_smoothing: opt.LabelSmoothing = None,
    discopop_tau: opt.DiscopopTau = None,
    simpo_gamma: opt.SimpoGamma = None,
    optimizer: opt.OptimizerOption = opt.Optim.adamw,
    learning_rate: opt.LearningRate = 1e-5,
    weight_decay: opt.WeightDecay = 0.0,
    momentum: opt.Momentum = 0.0,
    nesterov: opt.Nesterov = False,
    adam_beta1: opt.AdamBeta1 = 0.9,
    adam_beta2: opt.AdamBeta2 = 0.999,
    adam_epsilon: opt.AdamEpsilon = 1e-8,
    max_steps: opt.MaxSteps = 60,
    per_device_train_batch_size: opt.BatchSize = 32,
    gradient_accumulation_steps: opt.Accumulation = 1,
    lr_scheduler_type: opt.Scheduler = opt.Schedule.constant,
    warmup_steps: opt.WarmupSteps = 0,
    max_grad_norm: opt.MaxGradNorm = 1.0,
    lora_r: opt.LoraR = 16,
    lora_alpha: opt.LoraAlpha = 32,
    lora_dropout: opt.LoraDropout = 0.05,
    lora_target_modules: opt.LoraTargetModules = None,
    gradient_checkpointing: opt.GradientCheckpointing = False,
    bf16: opt.Bf16 = False,
    eval_steps: opt.EvalSteps = 10,
    record_train: Annotated[
        int | None,
        typer.Option(
            "--record_train",
            min=0,
            help="Training pairs whose margins are recorded, spread over concepts; 0: all "
            "[default: 256, and all of them with --train head]",
            rich_help_panel=opt.TRAINING,
        ),
    ] = None,
    report_to: Annotated[
        str,
        typer.Option("--report_to", help="none, tensorboard, wandb, trackio ...", rich_help_panel=opt.TRAINING),
    ] = "none",
    save_model: Annotated[
        bool,
        typer.Option("--save_model/--no_save_model", help="Keep the trained model", rich_help_panel=opt.OUTPUT),
    ] = True,
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train for real, and record the margin of every held-out pair on the way.

    Example: margincast train persona:k1 --max_steps 40 --learning_rate 1e-5
    """
    parameters = locals()
    parameters["train"] = parameters.pop("train_what")
    job = open_job("train", parameters)
    if job.finished:
        job.say("This run is already finished (its data are not read again); --no_resume runs it anew.")
        job.done(finished_summary(job))
        return
    check_settings(job.config)
    training_settings(job.config)
    inputs = load_inputs(job, persona_dir, cache_dir)
    job.done(run_training(job, inputs))


def finished_summary(job: Job) -> dict[str, Any]:
    from margincast.runs.load import load_run

    return load_run(Path(job.out)).summary


def training_settings(config: dict[str, Any]) -> TrainingSettings:
    """The settings of `config` that training knows. Raises `InputError` for those it cannot use."""
    from dataclasses import fields

    from margincast.recipe.settings import TrainingSettings

    names = {field.name for field in fields(TrainingSettings)}
    settings = {name: value for name, value in config.items() if name in names}
    if settings["record_train"] is None:
        settings["record_train"] = 0 if config["train"] == "head" else 256
    return TrainingSettings(**settings)


def run_training(job: Job, inputs: PairInputs) -> dict[str, Any]:
    """Train with the settings in `job.config`, save the run, print its tables."""
    from margincast.report import tables
    from margincast.report.figures import run_curves, save_figure
    from margincast.report.sections import write_page
    from margincast.runs.metrics import metric_rows
    from margincast.runs.save import save_trajectory, trajectory_results, write_summary
    from margincast.training.run import train_model

    config = job.config
    trajectory = train_model(
        inputs.loaded,
        inputs.encoding,
        inputs.features,
        training_settings(config),
        job.out,
        progress=job.progress,
        save_model=config["save_model"],
    )
    if not job.main:
        return {}
    save_trajectory(job.out, trajectory)
    save_figure(run_curves(trajectory), job.out / "figures", "curves")
    results = trajectory_results(trajectory, job.seconds)
    summary = write_summary(job.out, "train", config, results, **inputs.sections(config))
    write_page(job.out)
    job.table(f"{trajectory.origin}".capitalize(), tables.STEP_HEADER, tables.step_rows(metric_rows(trajectory)))
    job.table(f"Step {config['max_steps']}", tables.CONCEPT_HEADER, tables.concept_rows(results["concepts"]))
    return summary
