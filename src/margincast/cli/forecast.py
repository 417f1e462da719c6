"""margincast forecast"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from margincast.cli import options as opt
from margincast.cli.inputs import PairInputs, PositionInputs, check_settings, read_inputs, with_features, with_positions
from margincast.cli.job import Job, open_job
from margincast.errors import InputError

if TYPE_CHECKING:
    from margincast.records import Trajectory

# What only a forecast of a trained backbone takes, and what it is where nothing is said.
TRAINED: dict[str, Any] = {
    "backbone": opt.Backbone.frozen,
    "pilot": None,
    "rehearsal": 0.1,
    "sweep": None,
    "train": opt.TrainWhat.all,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_modules": None,
    "bf16": False,
}


def forecast(
    data: opt.Data,
    backbone: opt.BackboneOption = opt.Backbone.frozen,
    pilot: opt.Pilot = None,
    rehearsal: opt.RehearsalShare = 0.1,
    sweep: opt.Sweep = None,
    train: Annotated[
        opt.TrainWhat,
        typer.Option(
            "--train",
            help="With --backbone trained: all weights or a LoRA adapter (lora)",
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
    bf16: opt.Bf16 = False,
    eval_steps: opt.EvalSteps = 10,
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Forecast margins, loss and accuracy per concept before any training.

    Exact for a frozen backbone: the same numbers as `margincast train --train head` with the same options. With
    --backbone trained, a forecast with 90% intervals of training all weights or an adapter.

    Example: margincast forecast persona:k2 --optimizer adamw --learning_rate 1e-3 --max_steps 30
    """
    parameters = locals()
    if backbone is opt.Backbone.trained:
        from margincast.cli.trained import forecast_trained

        forecast_trained(parameters, persona_dir, cache_dir)
        return
    job = open_job("forecast", frozen_parameters(parameters))
    check_settings(job.config)
    inputs = read_inputs(job, persona_dir, cache_dir)
    of_what = with_features if inputs.encoding.single_token else with_positions
    job.done(run_forecast(job, of_what(job, inputs, cache_dir)))


def frozen_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those that a frozen forecast has. Raises `InputError` where one was given that belongs to the other kind."""
    others = {name: parameters[name] for name in TRAINED if name in parameters}
    given = [name for name, value in others.items() if value != TRAINED[name]]
    if given:
        raise InputError(f"--{given[0]} belongs to --backbone trained; with --backbone frozen leave it out")
    return {name: value for name, value in parameters.items() if name not in TRAINED}


def run_forecast(job: Job, inputs: PairInputs | PositionInputs) -> dict[str, Any]:
    """Forecast for the settings in `job.config`, save the run, print its tables."""
    from margincast.frozen.forecast import forecast as forecast_margins
    from margincast.report import tables
    from margincast.report.figures import run_curves, save_figure
    from margincast.report.sections import write_page
    from margincast.runs.metrics import metric_rows
    from margincast.runs.save import save_trajectory, trajectory_results, write_summary

    config = job.config
    settings = forecast_settings(config)
    if isinstance(inputs, PairInputs):
        trajectory: Trajectory = forecast_margins(inputs.features, **settings)
    else:
        trajectory = token_forecast(job, inputs, **settings)
    save_trajectory(job.out, trajectory)
    save_figure(run_curves(trajectory), job.out / "figures", "curves")
    results = trajectory_results(trajectory, job.seconds)
    summary = write_summary(job.out, "forecast", config, results, **inputs.sections(config))
    write_page(job.out)
    job.say(f"This is a {trajectory.origin}.")
    if trajectory.error is not None:
        job.say(f"Numerical error of any margin: at most {trajectory.error:.1g}.")
    job.table("", tables.STEP_HEADER, tables.step_rows(metric_rows(trajectory)))
    job.table(f"Step {config['max_steps']}", tables.CONCEPT_HEADER, tables.concept_rows(results["concepts"]))
    return summary


def forecast_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What forecasts of either kind take, from the options."""
    return {
        "beta": config["beta"],
        "optimizer": opt.optimizer_of(config),
        "steps": config["max_steps"],
        "batch_size": config["per_device_train_batch_size"],
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "seed": config["seed"],
        "eval_steps": config["eval_steps"],
        "loss_type": opt.loss_of(config),
        "lr_scheduler_type": config["lr_scheduler_type"],
        "warmup_steps": config["warmup_steps"],
        "max_grad_norm": config["max_grad_norm"],
    }


def token_forecast(job: Job, inputs: PositionInputs, **settings: Any) -> Trajectory:
    """Forecast with the whole unembedding as the state."""
    from margincast.frozen.tokens import forecast_tokens, head_of

    unembedding, bias = head_of(inputs.loaded)
    pairs = inputs.train, inputs.heldout
    return forecast_tokens(*inputs.positions, pairs, unembedding, bias=bias, progress=job.progress, **settings)
