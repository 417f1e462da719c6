"""How is a run trained? Said once, under TRL's names, for the command line, YAML, forecasts, training and rehearsals.

Defaults are the paper's. Where TRL has others, `TRL_DEFAULTS` says so, and so does the first line of a command.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from margincast.errors import InputError
from margincast.recipe.fields import INPUT, check_fields, option
from margincast.recipe.losses import LOSS_PARAMETERS, LOSSES, Loss, get_loss
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers import OPTIMIZERS, make_optimizer
from margincast.recipe.schedule import SCHEDULES, schedule

if TYPE_CHECKING:
    from margincast.recipe.batches import Batch

R = TypeVar("R", bound="Recipe")
STEPS = 60  # where neither steps nor epochs are given
WEIGHTS = ("all", "head", "lora")
LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
OF_OPTIMIZERS = ("weight_decay", "momentum", "nesterov", "adam_beta1", "adam_beta2", "adam_epsilon")
# Where TRL's DPOConfig has another default than the paper.
TRL_DEFAULTS: Mapping[str, str] = {
    "beta": "0.1",
    "learning_rate": "1e-06",
    "per_device_train_batch_size": "8",
    "lr_scheduler_type": "linear",
    "max_steps": "3 epochs",
}


def recorded_steps(steps: int, every: int) -> tuple[int, ...]:
    """Step 0, every `every`-th step and the last."""
    return tuple(sorted({*range(0, steps + 1, every), steps}))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run, under the names that TRL and transformers give them.

    loss_type, optimizer: a name, with the settings that it takes below, or a `Loss` or `Optimizer` made with its own;
    an `Optimizer` brings its own learning rate

    Raises `InputError` for values out of range, settings that the loss or optimizer does not take, and settings that
    contradict each other.
    """

    train: str = option(
        "all", "all weights, the unembedding (head) alone, or a LoRA adapter (lora)", choices=lambda: WEIGHTS
    )
    beta: float = option(0.01, "DPO's KL strength", positive=True)
    loss_type: str | Loss = option("sigmoid", "Loss of the margin: {choices}", choices=lambda: LOSSES.names, open=True)
    label_smoothing: float | None = option(
        None, "Share of wrong labels, for cdpo, robust, exo_pair and simpo [default: 0]"
    )
    discopop_tau: float | None = option(None, "Temperature of discopop [default: 0.05]")
    simpo_gamma: float | None = option(None, "Target margin of simpo [default: 0.5]")
    optimizer: str | Optimizer = option(
        "adamw",
        "{choices}; gd is full-batch sgd, flow its limit, for forecasts",
        choices=lambda: OPTIMIZERS.names,
        open=True,
    )
    learning_rate: float = option(1e-5, "Learning rate", positive=True)
    weight_decay: float = option(0.0, "Decoupled with adamw, L2 with sgd and gd", least=0.0)
    momentum: float = option(0.0, "Of sgd and gd")
    nesterov: bool = option(False, "Momentum that looks ahead")
    adam_beta1: float = option(0.9, "Of adamw and adam")
    adam_beta2: float = option(0.999, "Of adamw and adam")
    adam_epsilon: float = option(1e-8, "Of adamw and adam")
    max_steps: int | None = option(None, f"Optimizer steps [default: {STEPS}]", least=1)
    num_train_epochs: float | None = option(
        None, "Passes over the training pairs, in place of max_steps", positive=True
    )
    per_device_train_batch_size: int = option(32, "Pairs in a batch of each process", least=1)
    gradient_accumulation_steps: int = option(1, "Batches in a step", least=1)
    lr_scheduler_type: str = option("constant", "Learning-rate schedule: {choices}", choices=lambda: SCHEDULES)
    warmup_steps: float = option(0, "Steps of warm-up; below 1 a share of the steps", least=0)
    max_grad_norm: float = option(1.0, "Clip gradients at this norm; 0: never", least=0.0)
    lora_r: int = option(16, "Rank of the LoRA adapter", least=1)
    lora_alpha: int = option(32, "Its scale, over the rank", least=1)
    lora_dropout: float = option(0.05, "Its dropout", least=0.0, most=0.999)
    lora_target_modules: str | None = option(
        None, "Modules it goes around, by name with commas, or all-linear [default: peft's for the model]"
    )
    gradient_checkpointing: bool = option(False, "Compute activations twice, to save memory")
    bf16: bool = option(False, "Mixed precision")
    torch_compile: bool = option(False, "Compile the layers for training; left out, with the reason, where that fails")
    # The largest seed that numpy takes.
    seed: int = option(1234, "Of the split and of the batch order", INPUT, least=0, most=2**32 - 1)
    max_length: int = option(1024, "Cut prompt + response here, in tokens", INPUT, least=2)
    eval_steps: int = option(10, "Record margins every so many steps", least=1)
    record_train: int | None = option(
        None,
        "Training pairs whose margins a training run records, spread over concepts; 0: all "
        "[default: 256, and all of them with --train head]",
        least=0,
    )
    report_to: str = option("none", "none, tensorboard, wandb, trackio ...")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_steps is None and self.num_train_epochs is None:
            object.__setattr__(self, "max_steps", STEPS)
        elif self.max_steps is not None and self.num_train_epochs is not None:
            raise InputError("give max_steps or num_train_epochs, not both")
        if isinstance(self.optimizer, Optimizer):
            default = type(self).learning_rate
            if self.learning_rate not in (default, self.optimizer.learning_rate):
                raise InputError("learning_rate is the optimizer's own; give it where the optimizer is made")
            object.__setattr__(self, "learning_rate", self.optimizer.learning_rate)
        given = [name for name in LORA if getattr(self, name) != getattr(type(self), name)]
        if given and self.train != "lora":
            raise InputError(f"{given[0]} belongs to train lora; with train {self.train} leave it out")
        _ = self.rule, self.loss  # refuse what is none before any work

    @cached_property
    def rule(self) -> Optimizer:
        """The optimizer that `optimizer` and its settings name."""
        if isinstance(self.optimizer, Optimizer):
            return self.optimizer
        settings = {name: (getattr(self, name), getattr(type(self), name)) for name in OF_OPTIMIZERS}
        return make_optimizer(self.optimizer, self.learning_rate, settings)

    @cached_property
    def loss(self) -> Loss:
        """The loss that `loss_type` and its parameters name."""
        parameters = {name: getattr(self, name) for name in LOSS_PARAMETERS}
        return get_loss(self.loss_type, self.beta, without_reference=True, **parameters)

    @property
    def steps(self) -> int:
        """Optimizer steps. Raises `InputError` where they follow from epochs and pairs: ask `for_pairs` first."""
        if self.max_steps is None:
            raise InputError("num_train_epochs makes steps of a number of pairs; ask recipe.for_pairs(pairs) first")
        return self.max_steps

    def for_pairs(self: R, pairs: int) -> R:
        """This recipe with its epochs over `pairs` training pairs as steps, counted as transformers counts them."""
        if self.num_train_epochs is None:
            return self
        batches = 1 if self.rule.whole_batch else math.ceil(pairs / self.per_device_train_batch_size)
        in_epoch = max(math.ceil(batches / self.gradient_accumulation_steps), 1)
        return replace(self, max_steps=math.ceil(self.num_train_epochs * in_epoch), num_train_epochs=None)

    @property
    def recorded(self) -> tuple[int, ...]:
        """The steps whose margins are kept."""
        return recorded_steps(self.steps, self.eval_steps)

    @property
    def recorded_train(self) -> int:
        """How many training pairs a training run records; 0: all."""
        if self.record_train is not None:
            return self.record_train
        return 0 if self.train == "head" else 256

    def batches(self, pairs: int) -> Iterator[Batch]:
        """One batch a step of `pairs` training pairs. Raises `InputError` when there is none."""
        from margincast.recipe.batches import batch_order, full_batch

        if self.rule.whole_batch:
            return full_batch(pairs, self.steps)
        size, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        return batch_order(pairs, size, self.steps, self.seed, accumulation)

    @property
    def factor(self) -> Callable[[int], float]:
        """Schedule of the learning rate."""
        return schedule(self.lr_scheduler_type, self.steps, self.warmup)

    @property
    def warmup(self) -> int:
        """Steps of warm-up, as transformers counts a share of them."""
        return math.ceil(self.warmup_steps * self.steps) if self.warmup_steps < 1 else int(self.warmup_steps)

    def check_trainable(self) -> None:
        """Raises `InputError` for what a forecast can follow and a training run cannot, and for missing packages."""
        package = self.rule.package
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(
                f"optimizer {self.optimizer!r} needs {package}, which is not installed: pip install {package}"
            )
        if self.rule.torch_optimizer() is None:
            rules = {name: kind() for name, kind in OPTIMIZERS.all().items() if kind.package is None}
            able = [name for name, rule in rules.items() if rule.torch_optimizer() is not None]
            raise InputError(f"optimizer {self.optimizer!r} cannot train; use one of: {', '.join(able)}")
        if self.train == "lora" and importlib.util.find_spec("peft") is None:
            raise InputError("train lora needs peft: pip install 'margincast[lora]'")
        from margincast.recipe.trackers import check_report_to

        check_report_to(self.report_to)

    @classmethod
    def from_config(cls: type[R], config: Mapping[str, Any], **changes: Any) -> R:
        """The recipe in the config of a run, which has other settings too, with `changes`."""
        names = {each.name for each in fields(cls)}
        given = {name: value for name, value in config.items() if name in names} | changes
        if given.get("train") != "lora":
            given = {name: value for name, value in given.items() if name not in LORA}
        if given.get("num_train_epochs") is not None:
            given["max_steps"] = None
        return cls(**given)

    @classmethod
    def from_trl(cls: type[R], args: Any, peft_config: Any = None) -> R:
        """The recipe of a `trl.DPOConfig` and, with an adapter, its `peft.LoraConfig`.

        What of them has no meaning here is named in one `UserWarning`. Raises `InputError` for a loss that is not
        a function of the margin.
        """
        from margincast.recipe.trl import settings_of, warn_of

        settings, unused = settings_of(args, peft_config)
        warn_of(unused)
        return cls(**settings)

    def to_trl(self, output_dir: str | Path = "trl-run") -> Any:
        """The `trl.DPOConfig` of this run. Raises `InputError` where TRL has no such loss or optimizer."""
        from margincast.recipe.trl import dpo_config

        return dpo_config(self, output_dir)

    @classmethod
    def from_yaml(cls: type[R], path: str | Path) -> R:
        """The recipe in a YAML file: margincast's own, or that of `trl dpo --config`.

        What has no meaning for a recipe is named in one `UserWarning`. Raises `InputError` for a file that cannot be
        read, and for names that neither has, all at once.
        """
        from margincast.recipe.trl import warn_of
        from margincast.recipe.yaml_file import read_settings

        settings, unused = read_settings(Path(path), {each.name for each in fields(cls)})
        warn_of(unused)
        return cls(**settings)


def departures(recipe: Recipe) -> str:
    """In a line: where a default in use is the paper's and not TRL's; empty where none is."""
    said = []
    for name, theirs in TRL_DEFAULTS.items():
        default = STEPS if name == "max_steps" else getattr(Recipe, name)
        if getattr(recipe, name) == default:
            said.append(f"{name} {default} (TRL: {theirs})")
    return f"Defaults of the paper: {', '.join(said)}." if said else ""
