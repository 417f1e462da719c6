"""What does a model say of texts now, against what it said at first? KL, loss and greedy choice of every token.

With z and z' the logits of a token's place under the first model and under the one of now, and p = softmax(z):

    KL(p || p') = log sum p exp(z' - z) - sum p (z' - z)        over the whole vocabulary
    log p'(y) - log p(y) = (z' - z)(y) - sum p (z' - z) - KL

Both are taken of z' - z (`passes.growth`), so that they are exactly 0 where nothing changed. The logits of the first
model are made again from its hidden states and its unembedding, which are kept: they are a vocabulary wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from margincast.evaldata.tokens import Scored
from margincast.passes.budgets import BUDGETS
from margincast.passes.growth import growth_of
from margincast.passes.hooks import unwrapped
from margincast.passes.plan import packs_of, where_it_fits
from margincast.passes.response_pass import logit_transform, logits_of, sequence_states


@dataclass(frozen=True)
class Positions:
    """Every predicted token of some texts, laid end to end: P of them.

    target: (P,) the tokens;  owner: (P,) the text that each is of;  texts: how many there are
    """

    target: Tensor
    owner: Tensor
    texts: int

    @property
    def counts(self) -> Tensor:
        """(texts,) predicted tokens of each."""
        return torch.bincount(self.owner, minlength=self.texts)

    def per_text(self, values: Tensor) -> Tensor:
        """Sums of `values`, (..., P), over the tokens of each text: (..., texts) float64."""
        sums = torch.zeros(*values.shape[:-1], self.texts, dtype=torch.float64)
        return sums.index_add_(-1, self.owner, values.cpu().double())


def positions_of(texts: Sequence[Scored]) -> Positions:
    lengths = torch.tensor([len(text.targets) for text in texts])
    target = torch.tensor([token for text in texts for token in text.targets])
    return Positions(target, torch.repeat_interleave(torch.arange(len(texts)), lengths), len(texts))


@torch.no_grad()
def states_of(model: Any, texts: Sequence[Scored], packed: bool) -> Tensor:
    """The hidden states that predict the tokens of `texts`, (P, hidden), in the order of `positions_of`."""
    units = [[text.inputs] for text in texts]
    found: list[Tensor] = [torch.empty(0)] * len(texts)

    def compute(members: list[int]) -> list[Tensor]:
        hidden, paths = sequence_states(model, [texts[index].inputs for index in members], packed)
        return [
            hidden[path[texts[index].start - 1 :].to(hidden.device)] for index, path in zip(members, paths, strict=True)
        ]

    for pack in packs_of(model, units, packed):
        for members, states in where_it_fits(model, pack, units.__getitem__, packed, compute):
            for index, mine in zip(members, states, strict=True):
                found[index] = mine
    return torch.cat(found)


@dataclass(frozen=True)
class KeptHead:
    """An unembedding as it was: weight (V, hidden), bias (V,) or None, what the model makes of its product."""

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden) -> (rows, V), as `passes.response_pass.logits_of` makes them."""
        logits = linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


def kept_head(model: Any) -> KeptHead:
    """A copy of the model's unembedding."""
    head = unwrapped(model).get_output_embeddings()
    bias = getattr(head, "bias", None)
    return KeptHead(
        head.weight.detach().clone(), None if bias is None else bias.detach().clone(), *logit_transform(model)
    )


@dataclass(frozen=True)
class Shift:
    """Of every position, (P,) each, against the first model.

    kl: KL(p || p');  gain: log p'(y) - log p(y);  changed: whether another token is the most likely one
    """

    kl: Tensor
    gain: Tensor
    changed: Tensor


Logits = Callable[[slice], Tensor]


@torch.no_grad()
def shift(before: Logits, now: Logits, target: Tensor, vocabulary: int) -> Shift:
    """before, now: (rows, V) logits of the positions in a slice, float32 at least"""
    parts = []
    for rows in row_blocks(len(target), vocabulary):
        first, change = before(rows), now(rows)
        changed = change.argmax(1) != first.argmax(1)
        change -= first
        kl = growth_of(first, torch.softmax(first, 1), change)[:, 0]  # which leaves `change` less its mean
        mine = target[rows].to(change.device)
        parts.append((kl, change.gather(1, mine[:, None])[:, 0] - kl, changed))
    return Shift(*(torch.cat(each) for each in zip(*parts, strict=True)))


def row_blocks(count: int, vocabulary: int) -> Iterator[slice]:
    """Ranges of rows whose logits are not too many at once."""
    height = max(1, BUDGETS.logit_block // vocabulary)
    return (slice(start, min(start + height, count)) for start in range(0, count, height))


def exact(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def first_loss(before: Logits, target: Tensor, vocabulary: int) -> Tensor:
    """(P,) minus the log-probabilities of the tokens under the first model."""
    found = []
    for rows in row_blocks(len(target), vocabulary):
        logits = before(rows)
        mine = logits.gather(1, target[rows, None].to(logits.device))[:, 0]
        found.append(logits.logsumexp(1) - mine)
    return torch.cat(found) if found else torch.zeros(0)


def of_model(model: Any, hidden: Tensor) -> Logits:
    """The model's logits at rows of `hidden`."""
    return lambda rows: exact(logits_of(model, hidden[rows]))


def of_head(head: KeptHead, hidden: Tensor) -> Logits:
    """Those of an unembedding that was kept."""
    return lambda rows: exact(head.logits(hidden[rows]))
