"""Are the layers of a model faster compiled? `torch.compile` of each layer's call, tried before a run relies on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from margincast.passes.hooks import decoder_layers
from margincast.passes.response_pass import PACKING_TOLERANCE, response_pass
from margincast.passes.tokenize import Encoded

BACKEND = "inductor"  # torch's own


def compile_layers(model: Any, sample: Sequence[Encoded], packed: bool, say: Callable[[str], None]) -> None:
    """Compile the layers of `model`, once for passes of all lengths, forward and backward; or leave them and say why.

    sample: pairs whose passes are tried first: what they give must be what the layers gave before.
    """
    longest = max(max(len(pair.chosen), len(pair.rejected)) for pair in sample)
    layers = decoder_layers(model)
    with torch.no_grad():
        before = response_pass(model, sample, packed).chosen
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND)
    try:
        result = response_pass(model, sample, packed)
        torch.autograd.backward(result.chosen.sum())
        gap = float((result.chosen.detach() - before).abs().max())
        allowed = PACKING_TOLERANCE[model.dtype] * longest
        problem = None if gap <= allowed else f"log-probabilities then differ by {gap:.2g} (allowed {allowed:.2g})"
    except Exception as error:  # whatever a compiler does with what it cannot take
        problem = " ".join(str(error).split())[:200] or type(error).__name__
    model.zero_grad()
    if problem is not None:
        for layer in layers:
            layer._compiled_call_impl = None
        say(f"torch_compile is left out: {problem}")
