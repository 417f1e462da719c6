"""What does the model answer now? Greedily, with its cache, a batch of prompts at a time.

How many prompts are answered follows from a number of tokens and not of seconds, so that a run has the same numbers on
every machine, and after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from margincast.effects import AnswerEffects
from margincast.passes.hooks import unwrapped

NEW_TOKENS = 48
BATCH = 32
NONE = -1  # behind the end of an answer
GRAM = 4


def answered(
    prompts: Sequence[tuple[int, ...]], budget: int, records: int, context: int | None
) -> list[tuple[int, ...]]:
    """Those of `prompts`, evenly spread, that a run of `records` recorded steps can answer with `budget` tokens, in a
    model of `context` tokens."""
    prompts = [prompt for prompt in prompts if context is None or len(prompt) + NEW_TOKENS <= context]
    count = min(len(prompts), budget // (records * NEW_TOKENS))
    return [prompts[k * len(prompts) // count] for k in range(count)]


@torch.no_grad()
def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]]) -> Tensor:
    """Token ids, (prompts, `NEW_TOKENS`), with the end-of-sequence token where it came, and `NONE` behind it."""
    from transformers import GenerationConfig

    inner = unwrapped(model)
    head, device = inner.get_output_embeddings(), next(inner.parameters()).device
    end = tokenizer.eos_token_id
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end or 0)
    plain = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=filler, use_cache=True
    )
    found = torch.full((len(prompts), NEW_TOKENS), NONE)
    # A head that trains alone is in float64, which the layers below it are not.
    handle = head.register_forward_pre_hook(lambda _, given: (given[0].to(head.weight.dtype),))
    try:
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            width = max(map(len, some))
            ids = torch.full((len(some), width), filler)
            attended = torch.zeros(len(some), width, dtype=torch.long)
            for row, prompt in enumerate(some):
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                attended[row, width - len(prompt) :] = 1
            made = inner.generate(
                input_ids=ids.to(device), attention_mask=attended.to(device), generation_config=plain
            )[:, width:].cpu()
            found[start : start + len(some), : made.shape[1]] = made
    finally:
        handle.remove()
    return found if end is None else _ended(found, end)


def _ended(answers: Tensor, end: int) -> Tensor:
    """`NONE` behind every first `end`."""
    before = (answers == end).long().cumsum(1) - (answers == end).long()
    return answers.masked_fill(before > 0, NONE)


def effects_of_answers(steps: Sequence[Tensor], end: int | None) -> AnswerEffects:
    """steps: the answers at every recorded step, the first of them at step 0"""
    shapes = [_length_and_repeated(answers, end) for answers in steps]
    return AnswerEffects(
        torch.stack([length for length, _ in shapes]),
        torch.stack([repeated for _, repeated in shapes]),
        torch.stack([(answers != steps[0]).any(1).double() for answers in steps]),
    )


def _length_and_repeated(answers: Tensor, end: int | None) -> tuple[Tensor, Tensor]:
    lengths, shares = [], []
    for answer in answers.tolist():
        tokens = [token for token in answer if token not in (NONE, end)]
        grams = [tuple(tokens[k : k + GRAM]) for k in range(len(tokens) - GRAM + 1)]
        lengths.append(len(tokens))
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(lengths, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)
