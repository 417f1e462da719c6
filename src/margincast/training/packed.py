"""What does TRL's DPO loss need of a batch, and how does a packed pass give it? Compact batches, and a model's outputs
for them.

TRL's collator pads chosen and rejected sequences, prompts included, into one batch. Its loss and its metrics look at
response tokens alone. So the batch it is given here is compact: of every sequence the last token of the prompt and the
response; and the model, called with that batch, answers with what packed passes over the whole sequences say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput  # type: ignore[attr-defined]

from margincast.passes.budgets import BUDGETS, Budgets
from margincast.passes.head import logits_of, token_logps, vocabulary
from margincast.passes.plan import packs_of
from margincast.passes.response_pass import Rows, hidden_states
from margincast.passes.tokenize import Encoded

# What a batch may hold. Images, token types and the like would be lost.
GIVEN = {"input_ids", "attention_mask", "completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
# What TRL calls the model with: all of 1.x, and since 1.15 with labels for its own fused head.
CALLED_WITH = {"input_ids", "attention_mask", "use_cache", "labels", "fused_lm_head"}


class CannotPack(Exception):  # noqa: N818 (a reason, not an error: TRL's own pass can)
    """Why a batch cannot be packed, in words that are the same for every batch with that reason."""


@dataclass
class TokenOutput(ModelOutput):
    """What TRL 1.15 and later read of a model's output, by TRL's names: of every response token, (2 x pairs, longest
    response), 0 where a response is shorter. Without gradients but for `log_probs`.

    log_probs: its log-probability;  entropy, mean_logits: of the distribution it is drawn from, and of its logits
    log_sum_sq_probs: log sum p^2 of that distribution;  is_top1: whether it is the most likely one
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    aux_loss: Tensor | None = None


@dataclass(frozen=True)
class CompactBatch:
    """pairs: of the batch, in its order;  inputs: the batch as TRL is given it, (2 x pairs, 1 + longest response) ids
    and completion mask. Its attention mask is still that of the whole sequences: TRL only counts tokens with it.
    """

    pairs: tuple[Encoded, ...]
    inputs: Mapping[str, Tensor]

    @property
    def width(self) -> int:
        return self.inputs["input_ids"].shape[1]


def compact(inputs: Mapping[str, Tensor]) -> CompactBatch:
    """The compact form of a batch of TRL's collator. Raises `CannotPack`."""
    unknown = sorted(set(inputs) - GIVEN)
    if unknown:
        raise CannotPack(f"batches that hold {', '.join(unknown)}")
    columns = (inputs[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask"))
    sides = [_split(*row) for row in zip(*columns, strict=True)]
    half = len(sides) // 2
    pairs = []
    for (prompt, chosen), (other, rejected) in zip(sides[:half], sides[half:], strict=True):
        if prompt != other:
            raise CannotPack("batches whose chosen and rejected sequences have prompts of their own")
        pairs.append(Encoded(prompt, chosen, rejected))
    width = 1 + max(len(response) for _, response in sides)
    ids = torch.zeros(len(sides), width, dtype=torch.long)
    scored = torch.zeros(len(sides), width, dtype=torch.long)
    for row, (prompt, response) in enumerate(sides):
        ids[row, : 1 + len(response)] = torch.tensor((prompt[-1], *response))
        scored[row, 1 : 1 + len(response)] = 1
    device = inputs["input_ids"].device
    return CompactBatch(tuple(pairs), {**inputs, "input_ids": ids.to(device), "completion_mask": scored.to(device)})


def _split(ids: Sequence[int], attended: Sequence[int], scored: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Prompt and response of one row."""
    tokens = tuple(token for token, real in zip(ids, attended, strict=True) if real)
    mask = [bool(score) for score, real in zip(scored, attended, strict=True) if real]
    start = mask.index(True) if True in mask else len(mask)
    if not 0 < start < len(mask):
        raise CannotPack("batches with an empty prompt or an empty response")
    if not all(mask[start:]):
        raise CannotPack("batches whose completion_mask leaves out a part of a response")
    return tokens[:start], tokens[start:]


@contextmanager
def packed_forward(
    models: Sequence[Any], batch: CompactBatch, autocast: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Within, each of `models` answers a call with the packed outputs for `batch`.

    What is replaced is the language model's own `forward`: wrappers around it (DDP, an adapter that is switched off for
    the reference, autocast) do what they do. autocast: that of the trainer, for the head, which runs beside `forward`
    """
    kept = [vars(model).get("forward") for model in models]
    for model in models:
        model.forward = _packed(model, batch, autocast)
    try:
        yield
    finally:
        for model, forward in zip(models, kept, strict=True):
            if forward is None:
                del model.forward
            else:
                model.forward = forward


def _packed(model: Any, batch: CompactBatch, autocast: Callable[[], AbstractContextManager[Any]]) -> Callable[..., Any]:
    original = model.forward
    inside = False

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:  # a pass over one of the packs
            return original(*args, **kwargs)
        unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in CALLED_WITH)
        if args or unknown:
            raise CannotPack(f"a model that TRL calls with {', '.join(unknown) or 'unnamed arguments'}")
        inside = True
        try:
            with autocast():
                return token_outputs(model, batch) if kwargs.get("fused_lm_head") else logit_outputs(model, batch)
        finally:
            inside = False

    return forward


def token_outputs(model: Any, batch: CompactBatch, budgets: Budgets = BUDGETS) -> TokenOutput:
    """Values of every response token of `batch`."""
    predicted = int(batch.inputs["completion_mask"].sum())
    # As in `response_pass`: more logits than may be kept are made again in the backward pass.
    again = predicted * vocabulary(model) > budgets.logit_keep
    places, parts = [], []
    for place, states, position, rows in _passes(model, batch, budgets):
        parts.append(token_logps(model, states, position, rows.target, budgets, again, also=token_values))
        places.append(place)
    row, column = torch.cat(places, dim=1).to(parts[0][0].device)
    shape = len(batch.pairs) * 2, batch.width - 1

    def padded(values: Tensor) -> Tensor:
        return values.new_zeros(shape).index_put((row, column), values)

    return TokenOutput(*(padded(torch.cat(values)) for values in zip(*parts, strict=True)))


def token_values(logits: Tensor, logps: Tensor, position: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """Of the tokens `target`, predicted by rows `position` of `logits`: the fields of `TokenOutput` after the first,
    (tokens,) each."""
    p = logps.exp()
    entropy, squares = -(p * logps).sum(dim=-1), (p * p).sum(dim=-1).log()
    mean, best = logits.mean(dim=-1), logits.argmax(dim=-1)
    return entropy[position], squares[position], mean[position], best[position] == target


def logit_outputs(model: Any, batch: CompactBatch, budgets: Budgets = BUDGETS) -> CausalLMOutput:
    """Logits of `batch`, (2 x pairs, 1 + longest response, vocabulary): at every position those of the next token.

    Where a response is shorter, and at the last position, they are those of another one: TRL masks them out.
    """
    index = torch.zeros(len(batch.pairs) * 2, batch.width, dtype=torch.long)
    parts, rows_before = [], 0
    for (row, column), states, position, _ in _passes(model, batch, budgets):
        index[row, column] = rows_before + position.cpu()
        parts.append(logits_of(model, states))
        rows_before += len(states)
    # Under autocast a model's logits come in the precision of its weights: the trainer's wrapper sees to that.
    logits = torch.cat(parts).to(torch.promote_types(parts[0].dtype, model.dtype))
    return CausalLMOutput(logits=logits[index.to(logits.device)])


def _passes(model: Any, batch: CompactBatch, budgets: Budgets) -> Iterator[tuple[Tensor, Tensor, Tensor, Rows]]:
    """Of every pack: where its response tokens are in the compact batch, (2, tokens) row and column before; the hidden
    states that predict them, each once; which of these predicts each token; and its `Rows`."""
    half = len(batch.pairs)
    for members in packs_of(model, [pair.inputs for pair in batch.pairs], budgets=budgets):
        pairs = [batch.pairs[index] for index in members]
        hidden, rows = hidden_states(model, pairs)
        used, position = torch.unique(rows.row, return_inverse=True)
        of_batch = torch.tensor(members)[rows.response // 2] + half * (rows.response % 2)
        column = torch.cat([torch.arange(len(side)) for pair in pairs for side in (pair.chosen, pair.rejected)])
        yield torch.stack([of_batch, column]), hidden[used.to(hidden.device)], position, rows
