"""Where do a model's numbers first stop being finite? In which layer, and for which pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.passes.hooks import decoder_layers, keep_one, unwrapped
from margincast.passes.tokenize import Encoded


@torch.no_grad()
def not_finite(model: Any, pair: Encoded) -> str:
    """Which part of the model is the first whose output for `pair`, read alone, is not finite; and what to do."""
    inner = unwrapped(model)
    parts = {inner.get_input_embeddings(): "the input embedding"}
    try:
        stack = decoder_layers(model)
    except InputError:
        stack = ()
    for number, layer in enumerate(stack, start=1):
        parts[layer] = f"layer {number} of {len(stack)} ({type(layer).__name__})"
    parts[inner.get_output_embeddings()] = "the unembedding"
    met: list[str] = []

    def watch(module: Any, given: tuple[Any, ...], output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            before = module is inner.get_output_embeddings() and not bool(given[0].isfinite().all())
            met.append("the final norm" if before else parts[module])

    device = next(inner.parameters()).device
    handles = [part.register_forward_hook(watch) for part in parts]
    try:
        for ids in pair.inputs:
            inner(input_ids=torch.tensor([ids], device=device), use_cache=False, **keep_one(model))
            if met:
                break
    finally:
        for handle in handles:
            handle.remove()
    dtype = str(inner.dtype).removeprefix("torch.")
    where = f"{met[0]} is the first whose output is not" if met else "read alone, all of its layers' outputs are"
    remedy = "" if dtype == "float32" else "; read the model in float32 (--dtype float32)"
    return f"{where} finite, in {dtype}{remedy}"
