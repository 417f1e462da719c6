"""What else does a run change? Texts, pairs and answers outside its training data, at every recorded step.

A forecast and a run give the same record, as part of their `Trajectory`; `runs.effects` makes its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from margincast.records import PairSet


@dataclass(frozen=True, repr=False)
class TextEffects:
    """The texts of one set. Sums over the predicted tokens of each, in nats.

    tokens: (texts,) predicted tokens
    kl: (steps, texts) KL(ref || policy) over the whole vocabulary, ref being the model at step 0
    loss: (steps, texts) minus the log-probability of the tokens
    changed: (steps, texts) tokens in whose place another one has become the most likely
    """

    name: str
    tokens: Tensor
    kl: Tensor
    loss: Tensor
    changed: Tensor


@dataclass(frozen=True, repr=False)
class PairEffects:
    """The pairs of one set. margins: (steps, pairs), as of a `SplitTrajectory`"""

    name: str
    pairs: PairSet
    margins: Tensor


@dataclass(frozen=True, repr=False)
class AnswerEffects:
    """Greedy answers, (steps, prompts) each.

    length: tokens, the end-of-sequence token not counted
    repeated: the share of 4-grams that an earlier one of the answer equals
    changed: 1 where the answer is another than at step 0
    """

    length: Tensor
    repeated: Tensor
    changed: Tensor


@dataclass(frozen=True, repr=False)
class HeldoutResponses:
    """What rewards of held-out pairs are set against.

    lengths: (pairs, 2) tokens of the chosen and of the rejected response
    chosen: (pairs,) float64 log-probabilities of the chosen ones at step 0
    averaged: whether rewards are means over the tokens of a response, not sums
    """

    lengths: Tensor
    chosen: Tensor
    averaged: bool = False


@dataclass(frozen=True, repr=False)
class Effects:
    """answers: of real runs alone, and of those with a budget for them"""

    texts: tuple[TextEffects, ...]
    pairs: tuple[PairEffects, ...]
    heldout: HeldoutResponses
    answers: AnswerEffects | None = None

    def __repr__(self) -> str:
        names = dict.fromkeys([*(each.name for each in self.texts), *(each.name for each in self.pairs)])
        return f"Effects(on {', '.join(names)})"
