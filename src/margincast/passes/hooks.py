"""What is read inside a model while it runs? The input of its unembedding, the outputs of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from margincast.errors import InputError


def unwrapped(model: Any) -> Any:
    """The language model itself, out of the wrapper that training over processes puts around it.

    Its configuration, head and signature are asked here; forward passes go through the wrapper.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def own_precision(model: Any) -> Iterator[None]:
    """The model in the precision of its weights, whatever autocast is on, and evaluating.

    `accelerate` puts its autocast into the model's `forward`, and keeps the model's own as `_original_forward`.
    """
    was_training, wrapped = model.training, vars(model).get("_original_forward") and model.forward
    model.eval()
    if wrapped:
        model.forward = model._original_forward
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        if wrapped:
            model.forward = wrapped
        model.train(was_training)


@contextmanager
def unembedding_input(model: Any) -> Iterator[list[Tensor]]:
    """Collects what the unembedding is called with; the unembedding itself sees only the last position."""
    received: list[Tensor] = []

    def keep(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        received.append(arguments[0])
        # The logits of this call are not used; without this cut they would cost positions x vocabulary.
        return (arguments[0][..., -1:, :].to(head.weight.dtype),)

    head = unwrapped(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(keep)
    try:
        yield received
    finally:
        handle.remove()


@contextmanager
def layer_outputs(model: Any, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collects what `layers` of the model, counted from 0, put out in the pass within, in the order of the pass."""
    received: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        received.append(output[0] if isinstance(output, tuple) else output)

    stack = decoder_layers(model) if layers else ()
    handles = [stack[layer].register_forward_hook(keep) for layer in layers]
    try:
        yield received
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: Any) -> Any:
    """The layers of the model, as modules. Raises `InputError` where they cannot be told."""
    inner = unwrapped(model)
    count = inner.config.get_text_config().num_hidden_layers
    stacks = [part for part in inner.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count]
    if not stacks:
        raise InputError(f"{type(inner).__name__} has no list of {count} layers, whose outputs could be read")
    return stacks[0]


def keep_one(model: Any) -> dict[str, int]:
    # logits_to_keep=0 means "all": the hook must see every position.
    return {"logits_to_keep": 0} if "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters else {}
