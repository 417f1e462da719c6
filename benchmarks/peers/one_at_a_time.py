"""The authors' way to features: one prompt at a time through the whole model, every layer's hidden states asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from margincast.passes.tokenize import Encoded


@torch.no_grad()
def extract(model: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Hidden states (pairs, hidden) at the last prompt position, and log-probabilities (pairs, 2) of the responses,
    one token each."""
    hidden, logps = [], []
    for row in rows:
        output = model(torch.tensor([row.prompt]), output_hidden_states=True, use_cache=False)
        hidden.append(output.hidden_states[-1][0, -1])
        logps.append(torch.log_softmax(output.logits[0, -1], dim=-1)[[row.chosen[0], row.rejected[0]]])
    return torch.stack(hidden), torch.stack(logps)
