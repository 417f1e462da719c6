"""What travels between the stages: pairs, features, trajectories, checks.

Symbols: `beta` is DPO's KL strength; a *margin* is r = beta * [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)];
a *concept* is a group of pairs (a persona, a source); g is the hidden state that is multiplied by the unembedding.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from margincast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from margincast.recipe.losses import Loss

Message = Mapping[str, str]
Text = str | tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """One preference: to `prompt`, the response `chosen` is preferred to `rejected`.

    `prompt`, `chosen` and `rejected` are all strings (standard) or all tuples of `{"role", "content"}` messages
    (conversational). `source` and `line` (from 1) say where the pair was read; `id` is unique within a `PairSet`.
    `statement` is the bare statement that a persona question asks about, where there is one.
    """

    id: str
    concept: str
    prompt: Text
    chosen: Text
    rejected: Text
    source: str
    line: int
    statement: str | None = None

    @property
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)


@dataclass(frozen=True)
class PairSet(Sequence[Pair]):
    """An ordered set of pairs. Iterates, indexes and splits; `fingerprint` names its content.

    `duplicates` holds (first id, repeated id) for rows whose prompt and responses repeat an earlier row exactly;
    `skipped` the one-line reasons of rows left out on request.
    """

    pairs: tuple[Pair, ...]
    duplicates: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.pairs[index]

    @cached_property
    def concepts(self) -> tuple[str, ...]:
        """The concepts, in order of first appearance."""
        return tuple(dict.fromkeys(pair.concept for pair in self.pairs))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Pairs per concept."""
        return dict(Counter(pair.concept for pair in self.pairs))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over concept, prompt and responses of every pair, in order."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            row = [pair.id, pair.concept, pair.prompt, pair.chosen, pair.rejected, pair.statement]
            digest.update(json.dumps(row, ensure_ascii=False, default=dict).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def split(self, holdout: float = 0.1, seed: int = 1234) -> tuple[PairSet, PairSet]:
        """Part each concept into training and held-out pairs; the same seed gives the same parts.

        Every concept is drawn on its own, so adding a concept leaves the split of the others as it was. A concept of
        at least two pairs gives at least one to each part. Order within a part is the order of this set.

        Raises `InputError` when `holdout` is not strictly between 0 and 1 or no pair would be left for training or
        for holding out.
        """
        if not 0.0 < holdout < 1.0:
            raise InputError(f"holdout must be between 0 and 1, got {holdout}")
        heldout_ids: set[str] = set()
        for concept in self.concepts:
            members = [pair.id for pair in self.pairs if pair.concept == concept]
            random.Random(f"{seed}/{concept}").shuffle(members)
            share = min(max(round(holdout * len(members)), 1), len(members) - 1)
            heldout_ids.update(members[:share])
        train = tuple(pair for pair in self.pairs if pair.id not in heldout_ids)
        heldout = tuple(pair for pair in self.pairs if pair.id in heldout_ids)
        if not train or not heldout:
            raise InputError("the pairs of every concept are too few to split; give at least 2 pairs of one concept")
        return PairSet(train), PairSet(heldout)


@dataclass(frozen=True)
class FeatureSet:
    """Frozen features of one split. Row k belongs to `pairs[k]`.

    hidden: (pairs, hidden), what the unembedding multiplies at the position that predicts the response
    layers: (pairs, layers, hidden), what some inner layers put out there; None where nobody asked for it
    chosen_ids, rejected_ids: response token ids, ragged
    reference_chosen, reference_rejected: (pairs,) sums of log-probabilities of the responses under the reference
    """

    pairs: PairSet
    hidden: Tensor
    chosen_ids: tuple[tuple[int, ...], ...]
    rejected_ids: tuple[tuple[int, ...], ...]
    reference_chosen: Tensor
    reference_rejected: Tensor
    layers: Tensor | None = None

    @property
    def single_token(self) -> bool:
        """Whether every response is exactly one token."""
        return all(len(ids) == 1 for ids in self.chosen_ids + self.rejected_ids)

    def select(self, pairs: PairSet) -> FeatureSet:
        """The features of `pairs`, some of these, in their order. Raises `KeyError` for a pair that is not here."""
        row = {pair.id: index for index, pair in enumerate(self.pairs)}
        index = [row[pair.id] for pair in pairs]
        return FeatureSet(
            pairs=pairs,
            hidden=self.hidden[index],
            layers=None if self.layers is None else self.layers[index],
            chosen_ids=tuple(self.chosen_ids[k] for k in index),
            rejected_ids=tuple(self.rejected_ids[k] for k in index),
            reference_chosen=self.reference_chosen[index],
            reference_rejected=self.reference_rejected[index],
        )


@dataclass(frozen=True)
class Features:
    """Frozen features of a data set under one model, split into training and held-out pairs.

    tokens: (T,) the distinct response tokens, ascending, when every response is one token, else empty
    unembedding: (T, hidden) the reference unembedding's rows of `tokens` (AdamW's weight decay needs them)
    bias: (T,) the unembedding's bias for `tokens`, where it has one; training the unembedding leaves it as it is
    logits: what the model does with W g before the softmax: "linear", or the reason why it is not linear in W
    scale: the factor the model puts on W g (1 for most)
    """

    train: FeatureSet
    heldout: FeatureSet
    tokens: Tensor
    unembedding: Tensor
    model: str
    model_hash: str
    logits: str = "linear"
    scale: float = 1.0
    bias: Tensor | None = None


@dataclass(frozen=True)
class SplitTrajectory:
    """Margins of one split along a run.

    margins: (steps, pairs); chosen: (steps, pairs) rewards of the chosen responses, where log-probabilities are known
    Both leave the reference out where the loss does (`Loss.reference_free`).
    """

    pairs: PairSet
    margins: Tensor
    chosen: Tensor | None = None


@dataclass(frozen=True)
class Trajectory:
    """What forecast and training both produce: margins of every recorded pair at every recorded step.

    steps: the recorded optimizer steps, 0 first; for gradient flow, step s is time t = learning_rate * s
    loss_type: a member of the family f in `recipe.losses`: its name, or the `Loss` where the name does not say all
    error: bound on the numerical error of any margin; None where rounding of the arithmetic is all there is
    """

    steps: tuple[int, ...]
    train: SplitTrajectory
    heldout: SplitTrajectory
    beta: float
    loss_type: str | Loss = "sigmoid"
    origin: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Check:
    """A hypothesis with both its sides: `left relation right`, and whether it holds."""

    name: str
    left: float
    right: float
    relation: str = "<="
    note: str = ""
    holds: bool = field(init=False)

    def __post_init__(self) -> None:
        verdicts = {
            "<=": self.left <= self.right,
            "<": self.left < self.right,
            ">=": self.left >= self.right,
            "==": self.left == self.right,
        }
        if self.relation not in verdicts:
            raise ValueError(f"unknown relation {self.relation!r}")
        object.__setattr__(self, "holds", verdicts[self.relation])
