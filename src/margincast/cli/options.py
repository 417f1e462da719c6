"""The options that commands share, each defined once, under TRL's names where TRL has the thing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from margincast.errors import InputError
from margincast.recipe.losses import LOSS_NAMES, LOSS_PARAMETERS, Loss, get_loss

DATA_HELP = (
    "traits | persona:NAME[,NAME...] | persona:k1 ... persona:k16 | persona:all | a .jsonl, .parquet or .csv file or a "
    "folder of them | owner/name[:split] on the Hugging Face Hub"
)


class OnBadRow(StrEnum):
    fail = "fail"
    skip = "skip"


class Optim(StrEnum):
    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"
    gd = "gd"
    flow = "flow"


class TrainWhat(StrEnum):
    all = "all"
    head = "head"
    lora = "lora"


class Backbone(StrEnum):
    frozen = "frozen"
    trained = "trained"


class Schedule(StrEnum):
    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"must be a positive number, got {value:g}")
    return value


def parse_sweep(text: str, kinds: Mapping[str, Callable[[str], Any]], example: str) -> tuple[str, list[Any]]:
    """`name=value,value` as a name of `kinds` and its values, each read by its kind. Raises `InputError` for anything
    else, with `example` to show how."""
    name, _, listed = text.partition("=")
    if name not in kinds:
        raise InputError(f"--sweep {text}: give one of {', '.join(kinds)} and its values, like {example}")
    try:
        values = [kinds[name](value) for value in listed.split(",")]
    except ValueError as error:
        raise InputError(f"--sweep {text}: values of {name} are numbers with commas between, like {example}") from error
    if len(set(values)) < len(values):
        raise InputError(f"--sweep {text}: a value is given twice")
    return name, values


def share(value: float) -> float:
    if not 0 < value < 1:
        raise typer.BadParameter(f"must be between 0 and 1, got {value:g}")
    return value


INPUT, TRAINING, OUTPUT = "Input", "Training", "Output"

Data = Annotated[str, typer.Argument(help=DATA_HELP)]
Model = Annotated[str, typer.Option("--model", help="smollm2, a local folder or a Hub id", rich_help_panel=INPUT)]
Revision = Annotated[str | None, typer.Option("--revision", help="Hub revision of the model", rich_help_panel=INPUT)]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Weights of the model", rich_help_panel=INPUT)]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...", rich_help_panel=INPUT)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust_remote_code", help="Run code that comes with a Hub model", rich_help_panel=INPUT)
]
PersonaDir = Annotated[
    Path | None,
    typer.Option(
        "--persona_dir", envvar="MARGINCAST_PERSONA_DIR", help="Folder of persona files", rich_help_panel=INPUT
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache_dir",
        envvar="MARGINCAST_CACHE_DIR",
        help="Where the default model and features are kept [default: ~/.cache/margincast]",
        rich_help_panel=INPUT,
    ),
]
ConceptColumn = Annotated[
    str | None, typer.Option("--concept_column", help="Column that groups pairs into concepts", rich_help_panel=INPUT)
]
OnBadRowOption = Annotated[
    OnBadRow, typer.Option("--on_bad_row", help="Stop at unusable rows, or leave them out", rich_help_panel=INPUT)
]
Eos = Annotated[
    bool | None,
    typer.Option(
        "--eos/--no_eos",
        help="Append the end-of-sequence token as TRL does [default: not when all responses are one token]",
        rich_help_panel=INPUT,
    ),
]
MaxLength = Annotated[
    int, typer.Option("--max_length", min=2, help="Cut prompt + response here, in tokens", rich_help_panel=INPUT)
]
Holdout = Annotated[
    float,
    typer.Option("--holdout", callback=share, help="Share of every concept kept for evaluation", rich_help_panel=INPUT),
]
Seed = Annotated[
    int,
    # The largest seed that numpy takes.
    typer.Option("--seed", min=0, max=2**32 - 1, help="Of the split and of the batch order", rich_help_panel=INPUT),
]

Beta = Annotated[float, typer.Option("--beta", callback=positive, help="DPO's KL strength", rich_help_panel=TRAINING)]
LossType = Annotated[
    str,
    typer.Option("--loss_type", help=f"Loss of the margin: {', '.join(LOSS_NAMES)}", rich_help_panel=TRAINING),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(
        "--label_smoothing",
        help="Share of wrong labels, for cdpo, robust, exo_pair and simpo [default: 0]",
        rich_help_panel=TRAINING,
    ),
]
DiscopopTau = Annotated[
    float | None,
    typer.Option("--discopop_tau", help="Temperature of discopop [default: 0.05]", rich_help_panel=TRAINING),
]
SimpoGamma = Annotated[
    float | None, typer.Option("--simpo_gamma", help="Target margin of simpo [default: 0.5]", rich_help_panel=TRAINING)
]
LearningRate = Annotated[
    float, typer.Option("--learning_rate", callback=positive, help="Learning rate", rich_help_panel=TRAINING)
]
WeightDecay = Annotated[
    float,
    typer.Option("--weight_decay", min=0.0, help="Decoupled with adamw, L2 with sgd and gd", rich_help_panel=TRAINING),
]
Momentum = Annotated[float, typer.Option("--momentum", help="Of sgd and gd", rich_help_panel=TRAINING)]
Nesterov = Annotated[bool, typer.Option("--nesterov", help="Momentum that looks ahead", rich_help_panel=TRAINING)]
AdamBeta1 = Annotated[float, typer.Option("--adam_beta1", help="Of adamw and adam", rich_help_panel=TRAINING)]
AdamBeta2 = Annotated[float, typer.Option("--adam_beta2", help="Of adamw and adam", rich_help_panel=TRAINING)]
AdamEpsilon = Annotated[float, typer.Option("--adam_epsilon", help="Of adamw and adam", rich_help_panel=TRAINING)]
OptimizerOption = Annotated[
    Optim,
    typer.Option("--optimizer", help="gd is full-batch sgd; flow its limit, for forecasts", rich_help_panel=TRAINING),
]
MaxSteps = Annotated[int, typer.Option("--max_steps", min=1, help="Optimizer steps", rich_help_panel=TRAINING)]
BatchSize = Annotated[
    int,
    typer.Option(
        "--per_device_train_batch_size",
        min=1,
        help="Pairs in a batch of each process",
        rich_help_panel=TRAINING,
    ),
]
Accumulation = Annotated[
    int, typer.Option("--gradient_accumulation_steps", min=1, help="Batches in a step", rich_help_panel=TRAINING)
]
Scheduler = Annotated[
    Schedule, typer.Option("--lr_scheduler_type", help="Learning-rate schedule", rich_help_panel=TRAINING)
]
WarmupSteps = Annotated[int, typer.Option("--warmup_steps", min=0, help="Steps of warm-up", rich_help_panel=TRAINING)]
MaxGradNorm = Annotated[
    float,
    typer.Option("--max_grad_norm", min=0.0, help="Clip gradients at this norm; 0: never", rich_help_panel=TRAINING),
]
LoraR = Annotated[int, typer.Option("--lora_r", min=1, help="Rank of the adapter", rich_help_panel=TRAINING)]
LoraAlpha = Annotated[
    int,
    typer.Option(
        "--lora_alpha", min=1, help="Scale of the adapter, which is divided by lora_r", rich_help_panel=TRAINING
    ),
]
LoraDropout = Annotated[
    float,
    typer.Option("--lora_dropout", min=0.0, max=0.99, help="Dropout in the adapter", rich_help_panel=TRAINING),
]
LoraTargetModules = Annotated[
    str | None,
    typer.Option(
        "--lora_target_modules",
        help="Names separated by commas, or all-linear [default: peft's choice for the architecture]",
        rich_help_panel=TRAINING,
    ),
]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient_checkpointing", help="Less memory, more time", rich_help_panel=TRAINING)
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Mixed precision in bfloat16", rich_help_panel=TRAINING)]
EvalSteps = Annotated[
    int, typer.Option("--eval_steps", min=1, help="Record margins every so many steps", rich_help_panel=TRAINING)
]

BackboneOption = Annotated[
    Backbone,
    typer.Option(
        "--backbone",
        help="frozen: exact for training the unembedding alone; trained: all weights or LoRA, with intervals",
        rich_help_panel=TRAINING,
    ),
]
Pilot = Annotated[
    str | None,
    typer.Option(
        "--pilot",
        help="With --backbone trained: steps or a share of them to train for real, or the folder of a run; "
        "0 trains nothing at all [default: none, beside a rehearsal]",
        rich_help_panel=TRAINING,
    ),
]
RehearsalShare = Annotated[
    float,
    typer.Option(
        "--rehearsal",
        min=0.0,
        max=1.0,
        help="With --backbone trained: share of the training's pairs for a quick run at larger steps",
        rich_help_panel=TRAINING,
    ),
]
Sweep = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="With --backbone trained: compare values of a setting without a pilot, as in learning_rate=5e-6,1e-5,2e-5",
        rich_help_panel=TRAINING,
    ),
]

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for results [default: runs/<command>-<date>-<hash>]", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON and nothing else", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors", rich_help_panel=OUTPUT)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no_resume", help="Continue an interrupted run of the same settings", rich_help_panel=OUTPUT
    ),
]


def loss_of(config: dict[str, Any]) -> Loss:
    """The loss that `config` names. Raises `InputError` where it names none."""
    parameters = {name: config.get(name) for name in LOSS_PARAMETERS}
    return get_loss(config["loss_type"], config["beta"], without_reference=True, **parameters)


def optimizer_of(config: dict[str, Any]) -> Any:
    """The optimizer that `config` names. Raises `InputError` where it names none, or one with other settings."""
    from margincast.recipe.optimizers import make_optimizer

    names = ("weight_decay", "momentum", "nesterov", "adam_beta1", "adam_beta2", "adam_epsilon")
    settings = {name: config[name] for name in names if name in config}
    return make_optimizer(config["optimizer"], config["learning_rate"], **settings)
