"""What travels between the stages: pairs, features, trajectories, checks.

Symbols: `beta` is DPO's KL strength; a *margin* is r = beta * [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)];
a *concept* is a group of pairs (a persona, a source); g is the hidden state that is multiplied by the unembedding.
"""

from __future__ import annotations

import hashlib
import html
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

from margincast.errors import InputError, needed
from margincast.registry import Registry

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    from torch import Tensor

    from margincast.recipe.losses import Loss

# What JSON files hold: a summary, a row of a table. Values are looked at where the file's schema is known.
Json = dict[str, Any]
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


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"FeatureSet({len(self.pairs)} pairs, hidden {tuple(self.hidden.shape)})"

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
class Presenter:
    """How a kind of result is shown and kept.

    rows: of its table;  save: into a folder, as its command does, or None;  summary: header and rows for a notebook
    """

    rows: Callable[[Any], list[Json]]
    summary: Callable[[Any], tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    save: Callable[[Any, Path], None] | None = None


# By name, so that a record can be shown without importing what shows it.
PRESENTERS: Registry[Presenter] = Registry("presenter", "margincast.report.presenters", "margincast.presenters")


class Shown:
    """A result that shows itself: as a data frame, and in a notebook."""

    presenter: ClassVar[str]

    def to_pandas(self) -> pandas.DataFrame:
        """Its table, a row per pair and step, per agreement, per concept or per training pair."""
        frames = needed("pandas", "to_pandas()")
        return cast("pandas.DataFrame", frames.DataFrame(PRESENTERS.get(self.presenter).rows(self)))

    def _repr_html_(self) -> str:
        title, header, rows = PRESENTERS.get(self.presenter).summary(self)

        def line(kind: str, cells: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row) for row in rows)
        return f"<table><caption>{html.escape(title)}</caption>{line('th', header)}{body}</table>"


@dataclass(frozen=True)
class Trajectory(Shown):
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

    presenter: ClassVar[str] = "run"

    def save(self, folder: str | Path) -> None:
        """Leave a run folder, which `load_run`, `margincast compare` and `margincast report` read."""
        keep = PRESENTERS.get(self.presenter).save
        assert keep is not None  # of a run
        keep(self, Path(folder))

    def report(self, path: str | Path) -> None:
        """Write one self-contained HTML page: figures, tables and what they mean."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            page = (Path(folder) / "report.html").read_text(encoding="utf-8")
        Path(path).write_text(page, encoding="utf-8")


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
