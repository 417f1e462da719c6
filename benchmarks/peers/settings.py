"""How trainers are set that are timed step by step: nothing but steps, each of them logged."""

from __future__ import annotations

from typing import Any


def step_by_step(folder: str, steps: int, batch: int, learning_rate: float) -> dict[str, Any]:
    """Those of `transformers.TrainingArguments` that every side of a benchmark has."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "train_sampling_strategy": "sequential",
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
