"""What of a model is a LoRA adapter? One made anew for a run, or one that came with the model, on top of its weights.

A model that came with an adapter is read as a run starts from it: the policy is the model with its adapter, the
reference the model without. Merged into the weights, the adapter is part of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


def with_adapter(model: Any, recipe: Recipe) -> Any:
    """`model` in a LoRA adapter, which is all that trains: the one that it came with, else a fresh one.

    Raises `InputError` where it cannot have one.
    """
    if not has_adapter(model):
        return add_adapter(model, recipe)
    _refuse_unwrapped(model)
    model.requires_grad_(False)
    model.set_adapter(model.active_adapter)  # whose weights train again
    return model


def merged_model(model: Any) -> Any:
    """`model` with its adapter, if it came with one, added to its weights, which all train. Changes them in place.

    A step of the sum is a step of the weights under a fixed adapter; weight decay alone tells the two apart.
    Raises `InputError` for an adapter that peft did not put there.
    """
    if not has_adapter(model):
        return model
    _refuse_unwrapped(model)
    whole = model.merge_and_unload(safe_merge=True)
    return whole.requires_grad_(True)


def _refuse_unwrapped(model: Any) -> None:
    if not hasattr(model, "merge_and_unload"):
        raise InputError(
            "transformers loaded this model's adapter, and training takes it in peft's wrapper: give the adapter's "
            "folder as the model, or PeftModel.from_pretrained(base, folder)"
        )


def has_adapter(model: Any) -> bool:
    """Whether the model is peft's, or transformers' own with an adapter loaded."""
    return hasattr(model, "peft_config")


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model that the adapter is on top of: the reference."""
    if hasattr(model, "disable_adapter"):  # peft's own wrapper
        with model.disable_adapter():
            yield
        return
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def adapter_idle(model: Any) -> bool:
    """Whether the adapter adds nothing yet: LoRA's second factors are zero, as training makes them."""
    parts = [(name, weight) for name, weight in model.named_parameters() if "lora_" in name]
    others = any("modules_to_save" in name for name, _ in model.named_parameters())
    second = [weight for name, weight in parts if "lora_B" in name or "lora_embedding_B" in name]
    plain = all("lora_A" in name or "lora_B" in name or "lora_embedding_" in name for name, _ in parts)
    return bool(second) and plain and not others and not any(bool(weight.any()) for weight in second)


def adapter_trained(model: Any) -> bool:
    """Whether the model comes with an adapter that changes what it says: it is then not its own reference."""
    return has_adapter(model) and not adapter_idle(model)


def refuse_adapter(model: Any, name: str) -> None:
    """Raises `InputError` for an adapter that the features cannot be read through."""
    config = next(iter(model.peft_config.values()))
    if getattr(config, "is_prompt_learning", False):
        raise InputError(f"the adapter of {name} puts tokens before the prompt; margincast reads LoRA and its kin")
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise InputError(
            f"the adapter of {name} changes the unembedding, whose rows the features are of; merge it into the "
            "weights: --merge_adapter, merge_adapter=True, or model.merge_and_unload()"
        )


def open_adapter(model: Any, folder: str, name: str, merge: bool) -> Any:
    """`model` with the adapter of `folder` on top, or merged into its weights.

    Raises `InputError` for an adapter of another model, or one whose file lacks weights or has others.
    """
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"the adapter {name!r} cannot be put on its model: {' '.join(lines[:2]).strip()}") from error
    _refuse_other_parts(adapted, folder, name)
    return adapted.merge_and_unload(safe_merge=True) if merge else adapted


def _refuse_other_parts(adapted: Any, folder: str, name: str) -> None:
    """peft leaves parts that it finds no place for, and starts afresh those that it does not find."""
    from peft import get_peft_model_state_dict, load_peft_weights

    kept = {each for each in load_peft_weights(folder, device="cpu") if "lora_" in each}
    wanted = {each for each in get_peft_model_state_dict(adapted, save_embedding_layers=False) if "lora_" in each}
    for names, what in ((wanted - kept, "has no"), (kept - wanted, "has weights its model has no place for:")):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(f"the adapter {name!r} {what} {listed}; it is not of this model")
