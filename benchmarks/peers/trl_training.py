"""TRL's DPOTrainer on given pairs, in their order: as it comes, and at the best settings that its documentation has.

Both in float32, where TRL's default is bfloat16, so that losses can be compared, and without dropout.
"""

from __future__ import annotations

import copy
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

from margincast.records import PairSet
from margincast.trl import PackedDPOTrainer

# "Reducing memory usage" and the configuration's own page name these two; padding-free batches need FlashAttention, and
# kernels a GPU. Attention is torch's scaled dot product in all of them, the default.
BEST: dict[str, Any] = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}


def train(
    model: Any,
    tokenizer: Any,
    pairs: PairSet,
    best: bool,
    callback: TrainerCallback,
    settings: dict[str, Any],
    packed: bool = False,
) -> None:
    """Train on `pairs` in their order. settings: those of `transformers.TrainingArguments` and beta. packed: with
    margincast's subclass of TRL's trainer"""
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    (PackedDPOTrainer if packed else DPOTrainer)(
        model=model,
        ref_model=None if best else copy.deepcopy(model),
        args=DPOConfig(**settings, **(BEST if best else {})),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    ).train()
