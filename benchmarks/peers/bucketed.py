"""The usual fast way to features: prompts sorted by length, padded batches, logits at the last position alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from margincast.passes.tokenize import Encoded


@torch.no_grad()
def extract(model: Any, rows: Sequence[Encoded], budget: int) -> tuple[Tensor, Tensor]:
    """As `one_at_a_time.extract`, in batches of at most `budget` padded tokens."""
    hidden = torch.zeros(len(rows), model.config.hidden_size)
    logps = torch.zeros(len(rows), 2)
    head = model.get_output_embeddings()
    for members in buckets(rows, budget):
        lengths = torch.tensor([len(rows[index].prompt) for index in members])
        ids = torch.zeros(len(members), int(lengths.max()), dtype=torch.long)
        for place, index in enumerate(members):
            ids[place, : lengths[place]] = torch.tensor(rows[index].prompt)
        seen = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        states = model.base_model(ids, attention_mask=seen, use_cache=False).last_hidden_state
        last = states[torch.arange(len(members)), lengths - 1]
        answers = torch.tensor([[rows[index].chosen[0], rows[index].rejected[0]] for index in members])
        hidden[members] = last
        logps[members] = torch.log_softmax(head(last), dim=-1).gather(1, answers)
    return hidden, logps


def buckets(rows: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Indices of `rows` in batches of neighbours in length."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].prompt)):
        if batch and (len(batch) + 1) * len(rows[index].prompt) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
