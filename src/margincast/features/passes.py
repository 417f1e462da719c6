"""What does the model say about a batch of pairs? One forward pass gives log-probabilities and the features g.

The batch goes through as one packed prefix trie (`packing`); where a model cannot take the mask, as padded rows. Either
way g is read where it is used: it is the input of the unembedding, so no norm can be applied twice or forgotten.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margincast.features.packing import pack
from margincast.features.tokenize import Encoded

SELF_CHECK_PAIRS = 3
# How far packed and padded log-probabilities of one response token may be apart. On SmolLM2 rounding makes 9e-6 in
# float32 and 0.2 in bfloat16, where a model that ignores the mask is off by more than 3.
PACKING_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.8, torch.float16: 0.1}


@dataclass(frozen=True)
class PassResult:
    """chosen, rejected: (pairs,) summed log-probabilities of the responses; hidden: (pairs, hidden) at the position
    that predicts the response's first token. Differentiable when gradients are on."""

    chosen: Tensor
    rejected: Tensor
    hidden: Tensor


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


def response_pass(model: Any, batch: Sequence[Encoded], packed: bool = True) -> PassResult:
    """Log-probabilities and features of `batch` in one forward pass."""
    hidden, rows = hidden_states(model, batch, packed)
    used, position = torch.unique(rows.row, return_inverse=True)
    return PassResult(*response_logps(model, hidden[used], position, rows, len(batch)), hidden[rows.first])


def response_logps(model: Any, hidden: Tensor, position: Tensor, rows: Rows, pairs: int) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected responses, (pairs,) each, from predicting hidden states.

    hidden: (distinct predicting positions, hidden); position: which of them predicts each response token
    """
    logits = logits_of(model, hidden)
    logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    tokens = logps[position, rows.target.to(hidden.device)]
    sums = torch.zeros(2 * pairs, dtype=tokens.dtype, device=tokens.device).index_add(
        0, rows.response.to(tokens.device), tokens
    )
    return sums[0::2], sums[1::2]


def hidden_states(model: Any, batch: Sequence[Encoded], packed: bool = True) -> tuple[Tensor, Rows]:
    """Final hidden states of `batch`, (positions, hidden), as the unembedding receives them, and their `Rows`."""
    sequences = [sequence for pair in batch for sequence in pair.inputs]
    device = next(model.parameters()).device
    if packed:
        trie = pack(sequences)
        paths = trie.paths
        inputs = {
            "input_ids": trie.tokens[None].to(device),
            "position_ids": trie.depth[None].to(device),
            "attention_mask": trie.mask(model.dtype).to(device),
        }
    else:
        width = max(map(len, sequences))
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        seen = torch.zeros(len(sequences), width, dtype=torch.long)
        for index, sequence in enumerate(sequences):
            ids[index, : len(sequence)] = torch.tensor(sequence)
            seen[index, : len(sequence)] = 1
        paths = tuple(index * width + torch.arange(len(sequence)) for index, sequence in enumerate(sequences))
        inputs = {"input_ids": ids.to(device), "attention_mask": seen.to(device)}
    row, target, response, first = [], [], [], []
    for index, pair in enumerate(batch):
        start = len(pair.prompt) - 1
        first.append(paths[2 * index][start])
        for side, ids_of_side in enumerate((pair.chosen, pair.rejected)):
            row.append(paths[2 * index + side][start : start + len(ids_of_side)])
            target.append(torch.tensor(ids_of_side))
            response.append(torch.full((len(ids_of_side),), 2 * index + side))
    rows = Rows(torch.cat(row), torch.cat(target), torch.cat(response), torch.stack(first))
    with unembedding_input(model) as seen_by_head:
        model(**inputs, use_cache=False, **_keep_one(model))
    return seen_by_head[0].flatten(0, -2), rows


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """The model's own logits for `hidden`, (rows, hidden) -> (rows, vocabulary), scale and softcap included.

    Computed in the dtype of the unembedding, which head-only training keeps in float64.
    """
    head = model.get_output_embeddings()
    logits = head(hidden.to(head.weight.dtype))
    scale, softcap = logit_transform(model)
    logits = logits * scale
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def logit_transform(model: Any) -> tuple[float, float | None]:
    """(scale, softcap) that the model applies to W g. `check_logits` tests them against the model's own output."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return scale, float(softcap) if softcap else None


@contextmanager
def unembedding_input(model: Any) -> Iterator[list[Tensor]]:
    """Collects what the unembedding is called with; the unembedding itself sees only the last position."""
    received: list[Tensor] = []

    def keep(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        received.append(arguments[0])
        # The logits of this call are not used; without this cut they would cost positions x vocabulary.
        return (arguments[0][..., -1:, :].to(head.weight.dtype),)

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(keep)
    try:
        yield received
    finally:
        handle.remove()


def _keep_one(model: Any) -> dict[str, int]:
    # logits_to_keep=0 means "all": the hook must see every position.
    return {"logits_to_keep": 0} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


@torch.no_grad()
def packing_problem(model: Any, batch: Sequence[Encoded]) -> str | None:
    """Why `model` cannot be given packed batches, or None when it can.

    Compares packed with padded log-probabilities on the first pairs of `batch`: a model that ignores the mask or the
    position ids is found out here, not in the results.
    """
    # Different prompts: with one prompt alone the trie may be a line, and nothing would be checked.
    sample = list({pair.prompt: pair for pair in batch}.values())[:SELF_CHECK_PAIRS]
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    longest = max(len(sequence) for pair in batch for sequence in pair.inputs)
    if window and longest > window:
        return f"sequences of {longest} tokens are longer than the model's sliding window of {window}"
    try:
        packed = response_pass(model, sample, packed=True)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"the model refuses a packed batch ({(str(error).splitlines() or [type(error).__name__])[0]})"
    padded = response_pass(model, sample, packed=False)
    gap = max(
        float((packed.chosen - padded.chosen).abs().max()), float((packed.rejected - padded.rejected).abs().max())
    )
    longest_response = max(max(len(pair.chosen), len(pair.rejected)) for pair in sample)
    allowed = PACKING_TOLERANCE[model.dtype] * longest_response
    if not gap <= allowed:
        return f"packed and padded log-probabilities differ by {gap:.2g} (allowed {allowed:.2g})"
    return None


@torch.no_grad()
def check_logits(model: Any, batch: Sequence[Encoded]) -> str:
    """How the model's logits depend on W g: "linear", or why they are not linear in W.

    Raises `RuntimeError` when the logits that margincast computes are not the model's own: its numbers would be wrong.
    """
    ids = torch.tensor([batch[0].inputs[0]], device=next(model.parameters()).device)
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    with unembedding_input(model) as received:
        model(input_ids=ids, use_cache=False, **_keep_one(model))
    ours = logits_of(model, received[0][0]).float()
    gap = float((own - ours).abs().max() / own.abs().max())
    # The same operations in the same order; float32 gets room for another order of its sums.
    if not gap <= max(1e-5, 4 * torch.finfo(model.dtype).eps):
        raise RuntimeError(
            f"unembedding x features differs from the model's logits by {gap:.2g} of the largest; "
            f"{type(model).__name__} transforms its logits in a way margincast does not know"
        )
    softcap = logit_transform(model)[1]
    return f"soft-capped at {softcap:g}" if softcap else "linear"
