"""How does a recipe come from TRL's configuration, and go there? By the names that both have.

What TRL has and a recipe has not is named where its value is not TRL's default: it may change the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.errors import InputError
from margincast.recipe.fields import Settings
from margincast.recipe.losses import LOSS_PARAMETERS, get_loss, loss_parameters

if TYPE_CHECKING:
    from margincast.recipe.recipe import Recipe

# The same thing under the same name, in a DPOConfig and in a recipe.
SAME = (
    "beta", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "seed", "max_length", "torch_compile",
)  # fmt: skip
ADAPTER = {"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
OPTIM = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "sgd": "sgd",
    "adamw_bnb_8bit": "adamw_bnb_8bit", "adamw_8bit": "adamw_bnb_8bit",
}  # fmt: skip
# Losses of the margin that DPOTrainer has, under the same names.
TRL_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "discopop")
# Where a run's files, logs and machines are concerned, not its numbers.
ASIDE = (
    "output_dir", "logging", "save_", "report_to", "run_name", "hub_", "push_", "ddp_", "fsdp", "deepspeed",
    "dataloader", "dataset_num_proc", "eval_", "do_", "disable_", "use_cpu", "local_rank", "log_", "tf32",
    "gradient_checkpointing", "precompute_ref", "bf16", "remove_unused", "label_names", "accelerator_config",
    "per_device_eval", "data_seed", "optim", "max_steps", "num_train", "lr_scheduler", "warmup", "loss_type",
    "activation", "padding_free", "pad_", "trackio", "debug", "include_", "skip_memory", "resume",
    "torch_compile_",
)  # fmt: skip


def settings_of(args: Any, peft_config: Any) -> tuple[Settings, list[str]]:
    """A recipe's settings in a DPOConfig and a LoraConfig, and what of them it does not have."""
    settings: Settings = {name: getattr(args, name) for name in SAME if getattr(args, name, None) is not None}
    settings |= loss_settings(args.loss_type, args.beta, vars(args))
    optimizer, unused = optimizer_settings(_plain(args.optim), getattr(args, "optim_args", None))
    settings |= optimizer
    scheduler, more = scheduler_settings(args)
    settings |= scheduler
    settings |= duration(args.max_steps, args.num_train_epochs)
    settings["bf16"] = bool(getattr(args, "bf16", False))
    settings["gradient_checkpointing"] = bool(getattr(args, "gradient_checkpointing", False))
    reporters = getattr(args, "report_to", "none")
    settings["report_to"] = tracker(reporters)
    more += other_trackers(reporters)
    if _plain(getattr(args, "eval_strategy", "no")) == "steps" and args.eval_steps:
        settings["eval_steps"] = int(args.eval_steps)
    if peft_config is not None:
        adapter, rest = adapter_settings(peft_config)
        settings |= adapter
        more += rest
    return settings, [*unused, *more, *changed(args)]


def changed(args: Any) -> list[str]:
    """Names of a DPOConfig that no recipe has, and whose values are not the defaults."""
    found = []
    for each in fields(args) if is_dataclass(args) else ():
        if each.name in (*SAME, *LOSS_PARAMETERS) or each.name.startswith(ASIDE):
            continue
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if getattr(args, each.name) != default:
            found.append(f"{each.name}={_plain(getattr(args, each.name))!r}")
    return found


def loss_settings(loss_type: str | Sequence[str], beta: float, given: Mapping[str, Any]) -> Settings:
    """Raises `InputError` for a sum of several losses, and for one that is no function of the margin."""
    names = [loss_type] if isinstance(loss_type, str) else list(loss_type)
    if len(names) != 1:
        raise InputError(f"a recipe has one loss; this one sums {len(names)}: {', '.join(names)}")
    wanted = {name: given.get(name) or None for name in LOSS_PARAMETERS}
    # A configuration holds the parameters of all losses; TRL, as here, uses those of its own loss alone.
    taken = loss_parameters(names[0])
    mine = {name: value for name, value in wanted.items() if name in taken}
    get_loss(names[0], beta, without_reference=True, **mine)
    return {"loss_type": names[0], **mine}


def optimizer_settings(optim: str, optim_args: str | None) -> tuple[Settings, list[str]]:
    """An optimizer by transformers' name for it; one that is not here is forecast as AdamW, and named."""
    settings: Settings = {"optimizer": OPTIM.get(optim, "adamw")}
    unused = [] if optim in OPTIM else [f"optim={optim!r} (taken as adamw)"]
    for part in (optim_args or "").replace(" ", "").split(","):
        name, _, value = part.partition("=")
        if name == "momentum":
            settings["momentum"] = float(value)
        elif name == "nesterov":
            settings["nesterov"] = value.lower() in ("1", "true")
        elif name:
            unused.append(f"optim_args {part}")
    return settings, unused


def scheduler_settings(args: Any) -> tuple[Settings, list[str]]:
    """Schedule and warm-up."""
    from margincast.recipe.schedule import SCHEDULES

    name, unused = str(_plain(args.lr_scheduler_type)), []
    if name not in SCHEDULES:
        unused.append(f"lr_scheduler_type={name!r} (taken as cosine)")
        name = "cosine"
    warmup: float = getattr(args, "warmup_steps", 0) or getattr(args, "warmup_ratio", 0.0) or 0
    if getattr(args, "lr_scheduler_kwargs", None):
        unused.append("lr_scheduler_kwargs")
    return {"lr_scheduler_type": name, "warmup_steps": warmup}, unused


def duration(max_steps: int, epochs: float) -> Settings:
    """TRL's max_steps, where it is positive, goes before epochs."""
    return {"max_steps": max_steps} if max_steps and max_steps > 0 else {"num_train_epochs": float(epochs)}


def adapter_settings(peft_config: Any) -> tuple[Settings, list[str]]:
    """Of a LoraConfig. Raises `InputError` for an adapter of another kind."""
    if not hasattr(peft_config, "lora_alpha"):
        raise InputError(f"a recipe knows LoRA adapters; it was given {type(peft_config).__name__}")
    settings: Settings = {ours: getattr(peft_config, theirs) for theirs, ours in ADAPTER.items()}
    modules = peft_config.target_modules
    named = modules if modules is None or isinstance(modules, str) else ",".join(sorted(modules))
    settings |= {"train": "lora", "lora_target_modules": named}
    others = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
    return settings, [name for name in others if getattr(peft_config, name, None)]


def tracker(report_to: str | Sequence[str] | None) -> str:
    """The one tracker of a recipe."""
    if report_to is None or isinstance(report_to, str):
        return report_to or "none"
    return report_to[0] if report_to else "none"


def other_trackers(report_to: str | Sequence[str] | None) -> list[str]:
    """What a recipe does not take of them, named."""
    return [] if report_to is None or isinstance(report_to, str) else [f"report_to {name}" for name in report_to[1:]]


def dpo_config(recipe: Recipe, output_dir: str | Path) -> Any:
    """See `Recipe.to_trl`."""
    from trl import DPOConfig  # type: ignore[attr-defined]

    names = {"adamw": "adamw_torch", "adam": "adamw_torch", "sgd": "sgd", "adamw_bnb_8bit": "adamw_bnb_8bit"}
    loss, optimizer = recipe.loss, recipe.optimizer
    if loss.name not in TRL_LOSSES:
        raise InputError(f"TRL's DPOTrainer has no loss {loss.name!r}; use one of: {', '.join(TRL_LOSSES)}")
    if not isinstance(optimizer, str) or optimizer not in names:
        raise InputError(f"TRL has no optimizer {optimizer!r}; use one of: {', '.join(names)}")
    smoothing = loss.parameters.get("label_smoothing", 0.0)
    length = {"max_steps": recipe.max_steps} if recipe.max_steps else {"num_train_epochs": recipe.num_train_epochs}
    extra: Settings = {}
    if optimizer == "sgd" and recipe.momentum:
        extra["optim_args"] = f"momentum={recipe.momentum},nesterov={recipe.nesterov}"
    if "discopop_tau" in loss.parameters:
        extra["discopop_tau"] = loss.parameters["discopop_tau"]
    try:
        return DPOConfig(
            output_dir=str(output_dir), loss_type=[loss.name], label_smoothing=smoothing, optim=names[optimizer],
            lr_scheduler_type=recipe.lr_scheduler_type, warmup_steps=recipe.warmup_steps, bf16=recipe.bf16,
            gradient_checkpointing=recipe.gradient_checkpointing, report_to=recipe.report_to,
            eval_steps=recipe.eval_steps,
            **{name: getattr(recipe, name) for name in SAME}, **length, **extra,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"TRL has no such run: {error}") from error


def warn_of(unused: Sequence[str]) -> None:
    """Say once what was not carried over."""
    if unused:
        warnings.warn(f"not carried over to the recipe: {', '.join(unused)}", UserWarning, stacklevel=3)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
