"""What does the model say about a batch of pairs? A forward pass gives log-probabilities and the features g.

The batch goes through as packed prefix tries (`packing`); where a model cannot take the mask, as padded rows. Either
way g is read where it is used: it is the input of the unembedding, so no norm can be applied twice or forgotten.
Logits are made only where a response token is predicted, a block of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from margincast.errors import InputError
from margincast.passes.arguments import trie_arguments
from margincast.passes.budgets import BUDGETS, Budgets
from margincast.passes.finite import not_finite
from margincast.passes.head import logit_transform, logits_of, token_logps, vocabulary
from margincast.passes.hooks import keep_one, layer_outputs, own_precision, unembedding_input, unwrapped
from margincast.passes.packing import common_prefix, pack
from margincast.passes.plan import packs_of, plan_of, where_it_fits
from margincast.passes.tokenize import Encoded

__all__ = ["PassResult", "Rows", "check_logits", "finite_pairs", "hidden_states", "logit_transform", "logits_of",
           "packing_problem", "response_logps", "response_pass"]  # fmt: skip

SELF_CHECK_PAIRS = 3
SELF_CHECK_TOKENS = 64
# How far packed and padded log-probabilities of one response token may be apart. On SmolLM2 rounding makes 9e-6 in
# float32 and 0.2 in bfloat16, where a model that ignores the mask is off by more than 3.
PACKING_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.8, torch.float16: 0.1}


@dataclass(frozen=True)
class PassResult:
    """chosen, rejected: (pairs,) summed log-probabilities of the responses; hidden: (pairs, hidden) at the position
    that predicts the response's first token; layers: (pairs, layers, hidden) there, what the layers asked for put out,
    or, pooled, its mean over the chosen response's positions less that over the rejected one's.
    Differentiable when gradients are on."""

    chosen: Tensor
    rejected: Tensor
    hidden: Tensor
    layers: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Which rows of the hidden states predict which response token, and to which response they belong.

    row, target, response: (response tokens,) with response 2i for the chosen and 2i + 1 for the rejected side of pair i
    first: (pairs,) row that predicts the response's first token
    """

    row: Tensor
    target: Tensor
    response: Tensor
    first: Tensor


def response_pass(
    model: Any,
    batch: Sequence[Encoded],
    packed: bool = True,
    layers: Sequence[int] = (),
    budgets: Budgets = BUDGETS,
    pooled: bool = False,
) -> PassResult:
    """Log-probabilities and features of `batch`, row by row, in as few forward passes as are worth it.

    layers: whose outputs are kept, counted from 0;  pooled: over the positions of the responses

    `model` may be a `DistributedDataParallel`, which then is called once, however many passes there are.

    Without gradients a pair whose numbers are not finite leaves those of the others as they are (`_apart`), and a pack
    that memory does not suffice for is computed in halves. With them, where activations of every pack are kept, it is
    the caller who goes on with smaller packs (`training.step.pack_by_pack`).
    """
    # Weights that FSDP lays over processes are gathered pass by pass, by all of them: each makes one. Several passes
    # before a backward pass, or several of these in a step, found the head's weights freed (torch 2.13, on a CPU).
    whole = isinstance(model, FSDPModule)
    plan = [[*range(len(batch))]] if whole else packs_of(model, [pair.inputs for pair in batch], packed, budgets)
    predicted = sum(len(pair.chosen) + len(pair.rejected) for pair in batch)
    recompute = predicted * vocabulary(model) > budgets.logit_keep
    # Each pass through a DistributedDataParallel talks to the other processes, whose batch may be another number of
    # packs: one pass prepares it for the backward pass, the others go to the model itself.
    models = [model] + [unwrapped(model)] * (len(plan) - 1)
    parts = [
        _halved(each, [batch[index] for index in members], packed, recompute, layers, budgets, pooled)
        for each, members in zip(models, plan, strict=True)
    ]
    return _in_order(parts, plan)


def _halved(model: Any, batch: Sequence[Encoded], packed: bool, *how: Any) -> PassResult:
    """`_apart`, of halves of the batch where memory does not suffice for it and no gradients are kept."""
    if torch.is_grad_enabled():
        return _apart(model, batch, packed, *how)

    def compute(members: list[int]) -> PassResult:
        return _apart(model, [batch[index] for index in members], packed, *how)

    whole = range(len(batch))
    fitting = list(where_it_fits(model, whole, lambda index: batch[index].inputs, packed, compute))
    return _in_order([part for _, part in fitting], [members for members, _ in fitting])


def _apart(model: Any, batch: Sequence[Encoded], packed: bool, *how: Any) -> PassResult:
    """One pass, or one for every pair where a number of theirs is not finite.

    In a trie attention gives nodes that may not be seen a weight of 0, and 0 x NaN is NaN: a single overflowing row
    would spread to every pair of its pack.
    """
    result = _one_pass(model, batch, packed, *how)
    if torch.is_grad_enabled() or len(batch) == 1 or bool(finite_pairs(result).all()):
        return result
    return _joined([_one_pass(model, [pair], packed, *how) for pair in batch])


def finite_pairs(result: PassResult) -> Tensor:
    """(pairs,) whether log-probabilities and features of a pair are all finite."""
    return result.chosen.isfinite() & result.rejected.isfinite() & result.hidden.isfinite().all(dim=1)


def _in_order(parts: Sequence[PassResult], members: Sequence[Sequence[int]]) -> PassResult:
    """Parts of a batch, whose pairs are `members` of it, as one."""
    if len(parts) == 1 and list(members[0]) == sorted(members[0]):
        return parts[0]
    whole = _joined(parts)
    place = torch.argsort(torch.tensor([index for each in members for index in each])).to(whole.hidden.device)
    inner = None if whole.layers is None else whole.layers[place]
    return PassResult(whole.chosen[place], whole.rejected[place], whole.hidden[place], inner)


def _joined(parts: Sequence[PassResult]) -> PassResult:
    """Parts of a batch, one after the other."""
    chosen, rejected, hidden = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("chosen", "rejected", "hidden")
    )
    inner = [part.layers for part in parts if part.layers is not None]
    return PassResult(chosen, rejected, hidden, torch.cat(inner) if inner else None)


def _one_pass(
    model: Any,
    batch: Sequence[Encoded],
    packed: bool,
    recompute: bool = False,
    layers: Sequence[int] = (),
    budgets: Budgets = BUDGETS,
    pooled: bool = False,
) -> PassResult:
    with layer_outputs(model, layers) as outputs:
        hidden, rows = hidden_states(model, batch, packed)
    used, position = torch.unique(rows.row, return_inverse=True)
    logps = response_logps(model, hidden[used], position, rows, len(batch), recompute, budgets)
    read = rows.row if pooled else rows.first
    inner = torch.stack([output.flatten(0, -2)[read] for output in outputs], dim=1) if layers else None
    if inner is not None and pooled:
        inner = _mean_difference(inner.float(), rows.response.to(inner.device), len(batch))
    return PassResult(*logps, hidden[rows.first], inner)


def _mean_difference(states: Tensor, response: Tensor, pairs: int) -> Tensor:
    """The mean of `states`, (response tokens, ...), over each chosen response less that over the rejected one's."""
    sums = states.new_zeros(2 * pairs, *states.shape[1:]).index_add(0, response, states)
    means = sums / torch.bincount(response, minlength=2 * pairs)[:, None, None]
    return means[0::2] - means[1::2]


def response_logps(
    model: Any,
    hidden: Tensor,
    position: Tensor,
    rows: Rows,
    pairs: int,
    recompute: bool = False,
    budgets: Budgets = BUDGETS,
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected responses, (pairs,) each, from predicting hidden states.

    hidden: (distinct predicting positions, hidden); position: which of them predicts each response token
    recompute: make the logits again in the backward pass rather than keep them
    """
    (tokens,) = token_logps(model, hidden, position, rows.target, budgets, recompute)
    response = rows.response.to(tokens.device)
    sums = torch.zeros(2 * pairs, dtype=tokens.dtype, device=tokens.device).index_add(0, response, tokens)
    return sums[0::2], sums[1::2]


def hidden_states(model: Any, batch: Sequence[Encoded], packed: bool = True) -> tuple[Tensor, Rows]:
    """Final hidden states of `batch` in one pass, (positions, hidden), as the unembedding receives them; their `Rows`.

    With `packed` one trie holds the whole batch, whatever its size: `packing.plan_packs` makes batches that are right.
    """
    hidden, paths = sequence_states(model, [sequence for pair in batch for sequence in pair.inputs], packed)
    row, target, response, first = [], [], [], []
    for index, pair in enumerate(batch):
        start = len(pair.prompt) - 1
        first.append(paths[2 * index][start])
        for side, ids_of_side in enumerate((pair.chosen, pair.rejected)):
            row.append(paths[2 * index + side][start : start + len(ids_of_side)])
            target.append(torch.tensor(ids_of_side))
            response.append(torch.full((len(ids_of_side),), 2 * index + side))
    return hidden, Rows(torch.cat(row), torch.cat(target), torch.cat(response), torch.stack(first))


def sequence_states(
    model: Any, sequences: Sequence[Sequence[int]], packed: bool = True
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Final hidden states of `sequences` in one pass, (positions, hidden), as the unembedding receives them; and for
    every sequence the row of each of its tokens."""
    device = next(model.parameters()).device
    inputs: dict[str, Any]
    attention: AbstractContextManager[None] = nullcontext()
    if packed:
        trie = pack(sequences).to(device)
        paths = trie.paths
        attention, arguments = trie_arguments(model, trie)
        inputs = {"input_ids": trie.tokens[None], "position_ids": trie.depth[None], **arguments}
    else:
        width = max(map(len, sequences))
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        attended = torch.zeros(len(sequences), width, dtype=torch.long)
        for index, sequence in enumerate(sequences):
            ids[index, : len(sequence)] = torch.tensor(sequence)
            attended[index, : len(sequence)] = 1
        paths = tuple(index * width + torch.arange(len(sequence)) for index, sequence in enumerate(sequences))
        inputs = {"input_ids": ids.to(device), "attention_mask": attended.to(device)}
    with unembedding_input(model) as seen_by_head, attention:
        output = model(**inputs, use_cache=False, **keep_one(model))
    hidden = seen_by_head[0].flatten(0, -2)
    if isinstance(model, FSDPModule) and output.logits.requires_grad and not hidden.requires_grad:
        # FSDP sums gradients once the backward pass has met an output of the model: below a frozen backbone, this one.
        hidden = hidden + 0.0 * output.logits.sum().to(hidden.dtype)
    return hidden, paths


@torch.no_grad()
def packing_problem(model: Any, batch: Sequence[Encoded]) -> str | None:
    """Why `model` cannot be given packed batches, or None when it can.

    Compares packed with padded log-probabilities on a few pairs of `batch`, the one with the longest sequence among
    them: a model that ignores the mask, the position ids or its window is found out here, not in the results. An
    attention kernel with which they differ is refused, and the next one tried. Both are in the model's own precision:
    under autocast they are further apart than float32 weights say.
    """
    sample = _telling_pairs(batch)
    while True:
        with own_precision(model):
            problem = _difference(model, sample)
        if problem is None or not plan_of(model).attention.drop(problem):
            return problem


def _difference(model: Any, sample: Sequence[Encoded]) -> str | None:
    """Why packed log-probabilities of `sample` are not to be had, or how far from padded ones they are."""
    try:
        packed = _apart(model, sample, True)
    except Exception as error:  # whatever a model does with what it cannot take
        return f"the model refuses a packed batch ({(str(error).splitlines() or [type(error).__name__])[0]})"
    padded = _joined([_one_pass(model, [pair], packed=False) for pair in sample])
    told = finite_pairs(padded)
    if not bool(told.any()):
        return None  # numbers that are not finite say nothing of packs
    gap = max(
        float((packed.chosen - padded.chosen)[told].abs().max()),
        float((packed.rejected - padded.rejected)[told].abs().max()),
    )
    longest_response = max(max(len(pair.chosen), len(pair.rejected)) for pair in sample)
    allowed = PACKING_TOLERANCE[unwrapped(model).dtype] * longest_response
    if not gap <= allowed:
        return f"packed and padded log-probabilities differ by {gap:.2g} (allowed {allowed:.2g})"
    return None


def _telling_pairs(batch: Sequence[Encoded]) -> list[Encoded]:
    """The pair with the longest sequence and those that share least with it: if any trie branches, theirs does."""
    longest = max(batch, key=lambda pair: max(map(len, pair.inputs)))
    path = max(longest.inputs, key=len)

    def shared(pair: Encoded) -> float:
        return min(common_prefix(path, sequence) / len(sequence) for sequence in pair.inputs)

    others = sorted((pair for pair in dict.fromkeys(batch) if pair != longest), key=shared)
    return [longest, *others[: SELF_CHECK_PAIRS - 1]]


@torch.no_grad()
def check_logits(model: Any, batch: Sequence[Encoded]) -> str:
    """How the model's logits depend on W g: "linear", or why they are not linear in W.

    Raises `RuntimeError` when the logits that margincast computes are not the model's own: its numbers would be wrong;
    `InputError` when they are not finite.
    """
    ids = torch.tensor([batch[0].inputs[0][:SELF_CHECK_TOKENS]], device=next(model.parameters()).device)
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    with unembedding_input(model) as received:
        model(input_ids=ids, use_cache=False, **keep_one(model))
    ours = logits_of(model, received[0][0]).float()
    if not bool(expected.isfinite().all()):
        name = type(unwrapped(model)).__name__
        raise InputError(f"the logits of {name} are not finite: {not_finite(model, batch[0])}")
    gap = float((expected - ours).abs().max() / expected.abs().max())
    # The same operations in the same order; float32 gets room for another order of its sums.
    if not gap <= max(1e-5, 4 * torch.finfo(unwrapped(model).dtype).eps):
        raise RuntimeError(
            f"unembedding x features differs from the model's logits by {gap:.2g} of the largest; "
            f"{type(unwrapped(model)).__name__} transforms its logits in a way margincast does not know"
        )
    softcap = logit_transform(model)[1]
    return f"soft-capped at {softcap:g}" if softcap else "linear"
