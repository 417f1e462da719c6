"""What of a model is made ready to train, and where can it not be trained? Before the first step of a real run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from margincast.errors import InputError
from margincast.models.adapter import has_adapter, merged_model, with_adapter
from margincast.models.load import LoadedModel, untie
from margincast.models.quantised import refuse_training_quantised
from margincast.passes.tokenize import Encoded
from margincast.processes import DEEPSPEED
from margincast.recipe.recipe import Recipe
from margincast.training.compiled import compile_layers
from margincast.training.master import has_masters
from margincast.training.trainer import MarginTrainer

COMPILED = 3  # pairs that compiled layers are tried with


def prepared(loaded: LoadedModel, recipe: Recipe, say: Callable[[str], None] = warnings.warn) -> Any:
    """The model with what is to be trained of it, and nothing else, trainable; `loaded` is changed in place.

    An adapter that came with it goes on training under train lora, and else becomes part of the weights. Either way the
    reference is what the features have it to be: the model without.
    """
    refuse_training_quantised(loaded.model, recipe.train)
    if recipe.train == "lora":
        if has_adapter(loaded.model):
            say(f"the adapter of {loaded.name} trains on as it is: its own rank, scale and modules, and no dropout")
        loaded.model = with_adapter(loaded.model, recipe)
        return loaded.model
    loaded.model = merged_model(loaded.model)
    if recipe.train == "head":
        head = untie(loaded.model)
        loaded.model.requires_grad_(False)
        # A small step of the unembedding moves its entries, and logits, by less than float32 can hold.
        head.to(torch.float64).weight.requires_grad_(True)
    return loaded.model


def make_ready(trainer: MarginTrainer, rows: Sequence[Encoded], say: Callable[[str], None]) -> None:
    """Compile the layers where they are to be. Raises `InputError` where processes were started in a way that this run
    cannot be trained in."""
    if trainer.is_deepspeed_enabled:
        raise InputError(DEEPSPEED)
    if trainer.is_fsdp_enabled:
        refuse_sharded(trainer.recipe, trainer.model)
    if trainer.recipe.torch_compile:
        compile_layers(trainer.model, rows[:COMPILED], trainer.packed, say)


def refuse_sharded(recipe: Recipe, model: Any) -> None:
    """Raises `InputError` for what FSDP cannot train: a step of several batches, of which the second one crashed (torch
    2.13, on a CPU), weights of 16 bits, whose copies in float32 it would not shard, and compiled layers."""
    if has_masters(model):
        raise InputError(
            f"weights in {str(model.dtype).removeprefix('torch.')} are trained by copies in float32, which FSDP does "
            "not shard; give dtype float32 and bf16"
        )
    if recipe.torch_compile:
        raise InputError("torch_compile was not tried where FSDP shards the weights; leave it out")
    if recipe.gradient_accumulation_steps > 1:
        raise InputError(
            f"gradient_accumulation_steps {recipe.gradient_accumulation_steps} does not work where FSDP shards the "
            "weights; give 1 and a larger per_device_train_batch_size"
        )
