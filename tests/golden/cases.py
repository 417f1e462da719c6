"""Which commands are held still? By name; each runs in a folder of its own, on the tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DATA = Path(__file__).parents[3] / "shared" / "data"
HH = DATA / "hh-helpful" / "train.jsonl"

LOSSES: Mapping[str, tuple[str, ...]] = {
    "sigmoid": (),
    "hinge": (),
    "squared": (),
    "exponential": (),
    "truncated_quadratic": (),
    "savage": (),
    "sigmoid_norm": (),
    "ipo": (),
    "robust": ("--label_smoothing", "0.1"),
    "cdpo": ("--label_smoothing", "0.2"),
    "exo_pair": ("--label_smoothing", "0.01"),
    "discopop": ("--discopop_tau", "0.1"),
    "simpo": ("--simpo_gamma", "0.3"),
}
OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "adamw": ("--weight_decay", "0.01"),
    "adam": ("--adam_beta1", "0.8"),
    "sgd": ("--momentum", "0.9", "--weight_decay", "0.001", "--learning_rate", "0.1"),
    "gd": ("--learning_rate", "0.1"),
    "flow": (),
}
TINY = ("traits", "--model", "tiny", "--holdout", "0.1")
RUN = ("--learning_rate", "1e-3", "--per_device_train_batch_size", "16", "--lr_scheduler_type", "linear")
FROZEN = ("forecast", *TINY, "--backbone", "frozen", "--max_steps", "6", "--eval_steps", "3", *RUN)
TRAINED = ("forecast", *TINY, "--backbone", "trained", "--max_steps", "8", "--eval_steps", "4", *RUN)
TRAIN = ("train", *TINY, "--max_steps", "6", "--eval_steps", "3", "--no_save_model", *RUN)

Commands = tuple[tuple[str, ...], ...]


def frozen(loss: str, optimizer: str) -> Commands:
    options = ("--loss_type", loss, *LOSSES[loss], "--optimizer", optimizer, *OPTIMIZERS[optimizer])
    return ((*FROZEN, *options, "--out", "run"),)


def attributed(optimizer: str, *options: str) -> Commands:
    return (*frozen("sigmoid", optimizer), ("attribute", "run", "--out", "attributed", *options))


FAST: dict[str, Commands] = {
    "inspect": (("inspect", *TINY, "--out", "run"),),
    **{f"forecast-{loss}-adamw": frozen(loss, "adamw") for loss in LOSSES},
    **{f"forecast-sigmoid-{optimizer}": frozen("sigmoid", optimizer) for optimizer in OPTIMIZERS},
    "forecast-simpo-flow": frozen("simpo", "flow"),
    "attribute-adamw": attributed("adamw", "--export", "cleaned.jsonl", "--share", "0.1"),
    "attribute-gd": attributed("gd", "--export", "cleaned.jsonl", "--action", "flip", "--share", "0.1"),
    "attribute-flow": attributed("flow", "--export", "cleaned.jsonl", "--action", "weight", "--share", "0.1"),
    "forecast-all": ((*TRAINED, "--pilot", "0", "--out", "run"),),
    "forecast-all-rehearsed": ((*TRAINED, "--rehearsal", "0.5", "--out", "run"),),
    "forecast-lora-rehearsed": ((*TRAINED, "--train", "lora", "--rehearsal", "0.5", "--out", "run"),),
    "train-all": ((*TRAIN, "--train", "all", "--out", "run"),),
    "train-head": ((*TRAIN, "--train", "head", "--gradient_accumulation_steps", "2", "--out", "run"),),
    "train-lora": ((*TRAIN, "--train", "lora", "--lora_dropout", "0", "--out", "run"),),
    "train-simpo": ((*TRAIN, "--loss_type", "simpo", "--out", "run"),),
    "bounds": (("bounds", "--tokens", "chain", "--Z", "2", "--out", "run"),),
    "simulate": (("simulate", "--Q", "20", "--d", "60", "--noise", "0.05", "--out", "run"),),
}
SLOW: dict[str, Commands] = {
    **{
        f"forecast-{loss}-{optimizer}": frozen(loss, optimizer)
        for loss in LOSSES
        for optimizer in OPTIMIZERS
        if f"forecast-{loss}-{optimizer}" not in FAST
    },
    "decompose-hh": (
        ("decompose", "hh.jsonl", "--model", "tiny", "--all", "--max_steps", "4", "--learning_rate", "1e-3", "--out",
         "run"),
        ("forecast", "hh.jsonl", "--model", "tiny", "--backbone", "frozen", "--max_steps", "4", "--learning_rate",
         "1e-3", "--out", "forecast"),
    ),
    "reproduce-smoke": (("reproduce", "all", "--scale", "smoke", "--out", "run"),),
    "demo": (("demo", "--max_steps", "4", "--out", "run"),),
}  # fmt: skip
TIERS = {"fast": FAST, "slow": SLOW}

# Cases in which a mended fault leaves another number than before: how far, relatively, and why.
_REHEARSED = 1e-3, "a rehearsal's step is the trainer's: its first reference comes from the same pass"
MENDED: Mapping[str, tuple[float, str]] = {
    "forecast-all-rehearsed": _REHEARSED,
    "forecast-lora-rehearsed": _REHEARSED,
    "reproduce-smoke": _REHEARSED,
}
