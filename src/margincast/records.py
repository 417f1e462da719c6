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
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from margincast.errors import InputError
from margincast.results import Result
from margincast.splitting import heldout_ids, refuse_leakage

if TYPE_CHECKING:
    from torch import Tensor

    from margincast.effects import Effects
    from margincast.models.kind import ModelKind
    from margincast.recipe.losses import Loss

Message = Mapping[str, str]
Text = str | tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """One preference: to `prompt`, the response `chosen` is preferred to `rejected`.

    `prompt`, `chosen` and `rejected` are all strings (standard) or all tuples of `{"role", "content"}` messages
    (conversational). `source` and `line` (from 1) say where the pair was read; `id` is unique within a `PairSet`.
    `statement` is the bare statement that a persona question asks about, where there is one.
    `split` is the side the pair came on, where the data are split already.
    """

    id: str
    concept: str
    prompt: Text
    chosen: Text
    rejected: Text
    source: str
    line: int
    statement: str | None = None
    split: Literal["train", "heldout"] | None = None

    @property
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)


@dataclass(frozen=True, repr=False)
class PairSet(Sequence[Pair]):
    """An ordered set of pairs. Iterates, indexes and splits; `fingerprint` names its content.

    `duplicates` holds (first id, repeated id) for rows whose prompt and responses repeat an earlier row exactly;
    `skipped` the one-line reasons of rows left out on request; `notes` how the data were understood, a line each.
    """

    pairs: tuple[Pair, ...]
    duplicates: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> PairSet: ...

    def __getitem__(self, index: int | slice) -> Pair | PairSet:
        """A pair, or those of a slice as a `PairSet`."""
        return PairSet(self.pairs[index]) if isinstance(index, slice) else self.pairs[index]

    def __repr__(self) -> str:
        concepts = ", ".join(self.concepts[:4]) + (", ..." if len(self.concepts) > 4 else "")
        return f"PairSet({len(self)} pairs in {len(self.concepts)} concepts: {concepts})"

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

    def split(self, holdout: float = 0.1, seed: int = 1234, *, allow_leakage: bool = False) -> tuple[PairSet, PairSet]:
        """Part each concept into training and held-out pairs; the same seed gives the same parts.

        Pairs that came on a side (`Pair.split`) stay there; the others are drawn. Every concept is drawn on its own, so
        adding one leaves the split of the others as it was, as far as it shares no prompts with them: pairs with one
        prompt stay on one side. A concept of at least two prompts gives at least one to each part, unless another
        concept has them. Order within a part is the order of this set.

        allow_leakage: whether pairs that came split may have a prompt on both sides

        Raises `InputError` when `holdout` is not strictly between 0 and 1, when no pair would be left for training or
        for holding out, and for leakage.
        """
        if not 0.0 < holdout < 1.0:
            raise InputError(f"holdout must be between 0 and 1, got {holdout}")
        if not allow_leakage:
            refuse_leakage(self.pairs)
        held = heldout_ids(self.pairs, holdout, seed)
        train = tuple(pair for pair in self.pairs if pair.id not in held)
        heldout = tuple(pair for pair in self.pairs if pair.id in held)
        if not train or not heldout:
            raise InputError(
                "the pairs of every concept are too few to split; give at least 2 pairs of one concept, with different "
                "prompts"
            )
        return PairSet(train), PairSet(heldout)

    def spread(self, count: int) -> PairSet:
        """`count` of the pairs, drawn evenly from every concept by a fixed seed; all when `count` is 0 or too large."""
        if count <= 0 or count >= len(self):
            return self
        queues = []
        for concept in self.concepts:
            members = [pair.id for pair in self.pairs if pair.concept == concept]
            random.Random(concept).shuffle(members)
            queues.append(members)
        ranked = [pair for rank in range(max(map(len, queues))) for queue in queues for pair in queue[rank : rank + 1]]
        drawn = set(ranked[:count])
        return PairSet(tuple(pair for pair in self.pairs if pair.id in drawn))


@dataclass(frozen=True, repr=False)
class FeatureSet:
    """Frozen features of one split. Row k belongs to `pairs[k]`.

    hidden: (pairs, hidden), what the unembedding multiplies at the position that predicts the response
    layers: (pairs, layers, hidden), what some inner layers put out there; of responses of many tokens the mean over the
    positions of the chosen response less that over the rejected one's; None where nobody asked for it
    chosen_ids, rejected_ids: response token ids, ragged
    reference_chosen, reference_rejected: (pairs,) sums of log-probabilities of the responses under the reference
    start_chosen, start_rejected: (pairs,) the same under the policy, the model that the features are of, where that is
    not the reference: one with a trained adapter, whose reference is the model without it
    """

    pairs: PairSet
    hidden: Tensor
    chosen_ids: tuple[tuple[int, ...], ...]
    rejected_ids: tuple[tuple[int, ...], ...]
    reference_chosen: Tensor
    reference_rejected: Tensor
    layers: Tensor | None = None
    start_chosen: Tensor | None = None
    start_rejected: Tensor | None = None

    def __repr__(self) -> str:
        return f"FeatureSet({len(self.pairs)} pairs, hidden {tuple(self.hidden.shape)})"

    @property
    def single_token(self) -> bool:
        """Whether every response is exactly one token."""
        return all(len(ids) == 1 for ids in self.chosen_ids + self.rejected_ids)

    @property
    def policy_logps(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of chosen and rejected responses under the policy before training, (pairs,) each."""
        if self.start_chosen is None or self.start_rejected is None:
            return self.reference_chosen, self.reference_rejected
        return self.start_chosen, self.start_rejected

    @property
    def start_log_ratios(self) -> tuple[Tensor, Tensor] | None:
        """log(pi / pi_ref) of chosen and rejected responses before training, (pairs,) float64 each.

        None where the policy is its own reference."""
        if self.start_chosen is None or self.start_rejected is None:
            return None
        chosen = self.start_chosen.double() - self.reference_chosen.double()
        return chosen, self.start_rejected.double() - self.reference_rejected.double()

    def select(self, pairs: PairSet) -> FeatureSet:
        """The features of `pairs`, some of these, in their order. Raises `KeyError` for a pair that is not here."""
        row = {pair.id: index for index, pair in enumerate(self.pairs)}
        return self._at(pairs, [row[pair.id] for pair in pairs], [False] * len(pairs))

    def redrawn(self, pairs: PairSet, rows: Tensor, turned: Tensor) -> FeatureSet:
        """The rows at `rows`, as those of `pairs`, chosen and rejected swapped where `turned`. Without `layers`."""
        return replace(self, layers=None)._at(pairs, rows.tolist(), turned.tolist())

    def _at(self, pairs: PairSet, rows: list[int], turned: list[bool]) -> FeatureSet:
        def ids(straight: tuple[tuple[int, ...], ...], swapped: tuple[tuple[int, ...], ...]) -> tuple[Any, ...]:
            return tuple((swapped if turn else straight)[row] for row, turn in zip(rows, turned, strict=True))

        def sums(straight: Tensor | None, swapped: Tensor | None) -> Any:
            if straight is None or swapped is None:
                return None
            return swapped[rows].where(straight.new_tensor(turned).bool(), straight[rows])

        return FeatureSet(
            pairs=pairs,
            hidden=self.hidden[rows],
            layers=None if self.layers is None else self.layers[rows],
            chosen_ids=ids(self.chosen_ids, self.rejected_ids),
            rejected_ids=ids(self.rejected_ids, self.chosen_ids),
            reference_chosen=sums(self.reference_chosen, self.reference_rejected),
            reference_rejected=sums(self.reference_rejected, self.reference_chosen),
            start_chosen=sums(self.start_chosen, self.start_rejected),
            start_rejected=sums(self.start_rejected, self.start_chosen),
        )


@dataclass(frozen=True)
class Features:
    """Frozen features of a data set under one model, split into training and held-out pairs.

    tokens: (T,) the distinct response tokens, ascending, when every response is one token, else empty
    unembedding: (T, hidden) the reference unembedding's rows of `tokens` (AdamW's weight decay needs them)
    bias: (T,) the unembedding's bias for `tokens`, where it has one; training the unembedding leaves it as it is
    logits: what the model does with W g before the softmax: "linear", or the reason why it is not linear in W
    scale: the factor the model puts on W g (1 for most)
    device: where forecasts of them are calculated, that of the model; the tensors themselves are on the CPU
    kind: family and size of the model, None where they are not known
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
    device: str = "auto"
    kind: ModelKind | None = None

    @property
    def train_pairs(self) -> PairSet:
        return self.train.pairs

    @property
    def heldout_pairs(self) -> PairSet:
        return self.heldout.pairs

    def redrawn(self, pairs: PairSet, rows: Tensor, turned: Tensor) -> Features:
        """With the training pairs at `rows`, now called `pairs`, chosen and rejected swapped where `turned`."""
        return replace(self, train=self.train.redrawn(pairs, rows, turned))


@dataclass(frozen=True, repr=False)
class SplitTrajectory:
    """Margins of one split along a run.

    margins: (steps, pairs); chosen: (steps, pairs) rewards of the chosen responses, where log-probabilities are known
    Both leave the reference out where the loss does (`Loss.reference_free`).
    """

    pairs: PairSet
    margins: Tensor
    chosen: Tensor | None = None

    def __repr__(self) -> str:
        return f"SplitTrajectory({len(self.pairs)} pairs at {len(self.margins)} steps)"


@dataclass(frozen=True)
class Trajectory(Result):
    """What forecast and training both produce: margins of every recorded pair at every recorded step.

    steps: the recorded optimizer steps, 0 first; for gradient flow, step s is time t = learning_rate * s
    loss_type: a member of the family f in `recipe.losses`: its name, or the `Loss` where the name does not say all
    error: bound on the numerical error of any margin; None where rounding of the arithmetic is all there is
    effects: what was measured beside these pairs, on data given for that
    """

    steps: tuple[int, ...]
    train: SplitTrajectory
    heldout: SplitTrajectory
    beta: float
    loss_type: str | Loss = "sigmoid"
    origin: str = ""
    error: float | None = None
    effects: Effects | None = field(default=None, repr=False)

    presenter: ClassVar[str] = "run"


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
