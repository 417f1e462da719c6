"""What else will training the unembedding change? Exactly, from the features of eval data and every W_t.

A change d of the logits of a position whose tokens have the probabilities p gives it

    KL(p || p') = log sum p exp(d) - sum p d,        log p'(y) - log p(y) = d(y) - log sum p exp(d)

Where responses are of one token, d is 0 outside their T tokens (unless weights decay): the rest of the vocabulary then
enters by its probability and its most likely token alone, and the logits are made once for all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from margincast.effects import Effects, HeldoutResponses, PairEffects, TextEffects
from margincast.evaldata.features import EvalFeatures, EvalPart
from margincast.evaldata.measure import Logits, Shift, first_loss, row_blocks
from margincast.passes.growth import growth_of
from margincast.recipe.losses import Loss


@dataclass
class HeadMeter:
    """Measures states dW of a run, in the order of its recorded steps, step 0 aside, where nothing has changed.

    features: in the dtype and on the device of the states
    tokens: (T,) the rows of the unembedding that a state is of; None: all
    """

    features: EvalFeatures
    tokens: Tensor | None = None
    _shifts: list[list[Shift]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._shifts = [[_unmoved(part)] for part in self.features.parts]

    def see(self, states: Sequence[Tensor]) -> None:
        """states: (T, hidden) or (V, hidden) each"""
        for part, found in zip(self.features.parts, self._shifts, strict=True):
            found += self._of_part(part, states)

    def effects(self, loss: Loss, beta: float, heldout: HeldoutResponses) -> Effects:
        """What was seen. loss: of the run, which says what a margin is"""
        texts, pairs = [], []
        for part, shifts in zip(self.features.parts, self._shifts, strict=True):
            positions = part.positions
            before = first_loss(self._logits(part), positions.target, len(self.features.weight)).cpu()
            gain = torch.stack([shift.gain for shift in shifts])
            if part.pairs is None:
                kl = positions.per_text(torch.stack([shift.kl for shift in shifts]))
                changed = positions.per_text(torch.stack([shift.changed for shift in shifts]))
                texts.append(TextEffects(part.name, positions.counts, kl, positions.per_text(before - gain), changed))
            else:
                sums = positions.per_text(gain - before if loss.reference_free else gain)
                rewards = beta * (sums / positions.counts if loss.averaged else sums)
                pairs.append(PairEffects(part.name, part.pairs, rewards[:, 0::2] - rewards[:, 1::2]))
        return Effects(tuple(texts), tuple(pairs), heldout)

    def _logits(self, part: EvalPart) -> Logits:
        """W0 g, with the bias."""
        weight, bias = self.features.weight, self.features.bias
        return lambda rows: part.hidden[rows] @ weight.T if bias is None else part.hidden[rows] @ weight.T + bias

    def _of_part(self, part: EvalPart, states: Sequence[Tensor]) -> list[Shift]:
        logits_at = self._logits(part)
        found: list[list[Shift]] = [[] for _ in states]
        for rows in row_blocks(len(part.hidden), len(self.features.weight)):
            logits, hidden = logits_at(rows), part.hidden[rows]
            target = part.positions.target[rows].to(hidden.device)
            tokens = None if self.tokens is None else _some_tokens(logits, self.tokens.to(hidden.device))
            probability = torch.softmax(logits, 1) if tokens is None else tokens.probability
            for state, parts in zip(states, found, strict=True):
                change = hidden @ state.T
                of = _shift(logits, probability, change, target) if tokens is None else tokens.shift(change, target)
                parts.append(Shift(of.kl.cpu(), of.gain.cpu(), of.changed.cpu()))
        return [Shift(*(torch.cat([getattr(each, name) for each in parts]) for name in NAMES)) for parts in found]


NAMES = ("kl", "gain", "changed")


def _unmoved(part: EvalPart) -> Shift:
    zeros = torch.zeros(len(part.hidden), dtype=part.hidden.dtype)
    return Shift(zeros, zeros, zeros.bool())


def _shift(logits: Tensor, probability: Tensor, change: Tensor, target: Tensor) -> Shift:
    """Of a change of all logits, (rows, V), which is overwritten."""
    changed = (logits + change).argmax(1) != logits.argmax(1)
    kl = growth_of(logits, probability, change)[:, 0]
    return Shift(kl, change.gather(1, target[:, None])[:, 0] - kl, changed)


@dataclass(frozen=True)
class SomeTokens:
    """Positions as a change of the logits of T tokens alone meets them.

    tokens: (T,);  logits, probability: (rows, T);  rest: (rows,) probability of all other tokens
    best, likeliest: (rows,) logit and id of the most likely other token;  first: (rows,) the most likely of all
    """

    tokens: Tensor
    logits: Tensor
    probability: Tensor
    rest: Tensor
    best: Tensor
    likeliest: Tensor
    first: Tensor

    def shift(self, change: Tensor, target: Tensor) -> Shift:
        """change: (rows, T)"""
        mean = (self.probability * change).sum(1)
        grown = (self.probability * torch.expm1(change - mean[:, None])).sum(1) + self.rest * torch.expm1(-mean)
        kl = torch.log1p(grown)
        place = torch.searchsorted(self.tokens, target).clamp(max=len(self.tokens) - 1)
        own = change.gather(1, place[:, None])[:, 0].where(self.tokens[place] == target, torch.zeros_like(mean))
        top, which = (self.logits + change).max(1)
        now = torch.where(top > self.best, self.tokens[which], self.likeliest)
        return Shift(kl, own - mean - kl, now != self.first)


def _some_tokens(logits: Tensor, tokens: Tensor) -> SomeTokens:
    probability = torch.softmax(logits, 1)
    others = probability.clone()
    others[:, tokens] = 0.0
    first, inside = logits.argmax(1), logits[:, tokens]
    without = logits.index_fill(1, tokens, float("-inf"))
    best, likeliest = without.max(1)
    return SomeTokens(tokens, inside, probability[:, tokens], others.sum(1), best, likeliest, first)
