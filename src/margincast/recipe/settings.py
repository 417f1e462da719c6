"""How is a run to be trained? Its settings, under the names that TRL and transformers give them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.errors import InputError
from margincast.processes import sharded
from margincast.recipe.losses import LOSS_PARAMETERS, Loss, get_loss

if TYPE_CHECKING:
    from transformers import TrainingArguments

LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
# What the trackers that transformers can look for are called on the package index.
PACKAGES = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet-ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
OPTIM = {"adamw": "adamw_torch", "adam": "adamw_torch", "sgd": "sgd", "gd": "sgd"}


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a run, under the names that TRL and transformers give them.

    train: "all" weights; the unembedding ("head") alone, untied from the input embedding; or a LoRA adapter ("lora")
    loss_type: a name of `recipe.losses`, with the parameters that it takes (None: TRL's default), or a `Loss`
    momentum, nesterov: of sgd and gd;  adam_beta1, adam_beta2, adam_epsilon: of adamw and adam
    lora_r, lora_alpha, lora_dropout, lora_target_modules: of lora, with TRL's defaults; the modules by name, separated
    by commas, or all-linear (None: those that peft takes for the architecture)
    per_device_train_batch_size: pairs in a batch of each process
    record_train: how many training pairs to record, spread over concepts; 0 records all of them
    """

    train: str = "all"
    beta: float = 0.01
    loss_type: str | Loss = "sigmoid"
    label_smoothing: float | None = None
    discopop_tau: float | None = None
    simpo_gamma: float | None = None
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: str | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_steps: int = 60
    per_device_train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    seed: int = 1234
    eval_steps: int = 10
    record_train: int = 0
    gradient_checkpointing: bool = False
    bf16: bool = False
    report_to: str = "none"

    def __post_init__(self) -> None:
        if self.train not in ("all", "head", "lora"):
            raise InputError(f"train must be all, head or lora, got {self.train!r}")
        if self.train == "head" and sharded():
            # FSDP sums gradients of what a layer's output depends on; with a frozen backbone that is nothing.
            raise InputError(
                "train head cannot have its weights sharded by FSDP: launch it without, or as one process; "
                "train all and lora can"
            )
        if self.train == "lora" and importlib.util.find_spec("peft") is None:
            raise InputError("train lora needs peft: pip install 'margincast[lora]'")
        given = [name for name in LORA if getattr(self, name) != getattr(type(self), name)]
        if given and self.train != "lora":
            raise InputError(f"{given[0]} belongs to train lora; with train {self.train} leave it out")
        if self.optimizer not in OPTIM:
            raise InputError(f"optimizer {self.optimizer!r} cannot train; use one of: {', '.join(OPTIM)}")
        if self.optimizer == "adam" and self.weight_decay:
            raise InputError("weight_decay is decoupled decay and belongs to adamw; with adam leave it 0")
        if OPTIM[self.optimizer] != "sgd" and (self.momentum or self.nesterov):
            raise InputError(f"momentum and nesterov belong to sgd and gd; with {self.optimizer} leave them out")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0")
        _check_report_to(self.report_to)
        _ = self.loss  # refuses what is no loss before any work

    @property
    def loss(self) -> Loss:
        """The loss that `loss_type` and its parameters name. Raises `InputError` where they do not name one."""
        parameters = {name: getattr(self, name) for name in LOSS_PARAMETERS}
        return get_loss(self.loss_type, self.beta, without_reference=True, **parameters)


def arguments(settings: TrainingSettings, state: Path, batch_size: int, device: str) -> TrainingArguments:
    """`settings` as `MarginTrainer` takes them. batch_size: of all processes together; state: its folder."""
    from transformers import TrainingArguments  # seconds, which a forecast does without

    return TrainingArguments(
        output_dir=str(state),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        optim=OPTIM[settings.optimizer],
        optim_args=f"momentum={settings.momentum!r},nesterov={settings.nesterov}",
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        activation_checkpointing=settings.gradient_checkpointing,
        bf16=settings.bf16,
        report_to=settings.report_to,
        use_cpu=device == "cpu",
        eval_strategy="no",
        save_strategy="steps",
        save_steps=settings.eval_steps,
        save_total_limit=1,
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def _check_report_to(name: str) -> None:
    """Raises `InputError` for what transformers cannot report to here, before it says so itself, after minutes."""
    if name == "none":
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known = {"none", "all", *INTEGRATION_TO_CALLBACK}
    if name not in known:
        raise InputError(f"report_to {name!r} is not known; use one of: {', '.join(sorted(known))}")
    if name in PACKAGES and name not in get_available_reporting_integrations():  # type: ignore[no-untyped-call]
        raise InputError(f"report_to {name} needs its package: pip install {PACKAGES[name]}")
