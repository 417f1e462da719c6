"""Which kinds of suspect are there? One module a kind: what its score means, how it is had, from when it is an issue.

A kind of another package is an entry point of the group `margincast.suspects`: a `SuspectKind`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from margincast.diagnose.mislabel import Mislabelled
from margincast.diagnose.points import Neighbours, Points
from margincast.features.positions import TokenFeatures
from margincast.records import FeatureSet, PairSet
from margincast.registry import Registry


@dataclass(frozen=True)
class Evidence:
    """What is known of the training pairs: their features, their places in the pair kernel, their left-out margins.

    pushed: the same places, and after them those of held-out pairs where their features are of every position
    targets: (pairs of `pushed`,) bool, which of them are held out; None where none is
    """

    pairs: PairSet
    train: FeatureSet | TokenFeatures
    points: Points[Any]
    left_out: Mislabelled
    pushed: Points[Any]
    targets: Tensor | None


@dataclass(frozen=True)
class Scores:
    """Of every pair: score, (pairs,) in [0, 1]; flag, (pairs,) whether it is an issue
    neighbours: the pair that it is about beside this one, where it is about two
    """

    score: Tensor
    flag: Tensor
    neighbours: Neighbours | None = None


@dataclass(frozen=True)
class SuspectKind:
    """meaning: of a score, in a few words;  threshold: from which it is an issue, other conditions aside
    flippable: whether exchanging chosen and rejected can mend it;  rank: its place in tables
    flagged: when it is an issue, in words [default: above the threshold]
    stays: of two pairs that an issue is about, the one that cleaning leaves, None where it is about one
    """

    meaning: str
    threshold: float
    score: Callable[[Evidence], Scores]
    flippable: bool = False
    rank: int = 50
    flagged: str = ""
    stays: Literal["first", "likelier"] | None = None

    @property
    def flagged_when(self) -> str:
        return self.flagged or f"> {self.threshold:g}"


KINDS: Registry[SuspectKind] = Registry("issue", "margincast.diagnose.kinds", "margincast.suspects")
"""The kinds of suspect by name. `KINDS.register(name)` enters a `SuspectKind`."""


def kinds() -> dict[str, SuspectKind]:
    """All kinds by name, in the order of tables."""
    return dict(sorted(KINDS.all().items(), key=lambda item: item[1].rank))
