"""What does a run train that leaves all weights as they are? A LoRA adapter around them."""

from __future__ import annotations

from typing import Any

import torch

from margincast.errors import InputError
from margincast.recipe.recipe import Recipe


def add_adapter(model: Any, recipe: Recipe) -> Any:
    """`model` inside a fresh LoRA adapter, which is all that trains. Raises `InputError` where it cannot have one."""
    from peft import LoraConfig, get_peft_model

    modules = recipe.lora_target_modules
    names = [name.strip() for name in modules.split(",")] if modules and modules != "all-linear" else modules
    torch.manual_seed(recipe.seed)  # the adapter's first weights
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=names,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"this model cannot have the adapter: {str(error).splitlines()[0]}") from error
