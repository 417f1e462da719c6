"""What must be known of pairs to find the suspects among them? The same of responses of one token and of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from margincast.records import PairSet
from margincast.results import Json


class Settings(Protocol):
    """Of a kernel of pairs."""

    def said(self) -> Json:
        """By name, as `suspects.json` has them."""
        ...


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Neighbours:
    """score: (pairs,) in [0, 1]; partner: (pairs,) row of the nearest such pair, -1 for none; overlap: (pairs,)

    overlap is the weighted Jaccard similarity of the two pairs' words (of their prompts, where responses are single
    tokens); a word weighs the more the rarer it is.
    """

    score: Tensor
    partner: Tensor
    overlap: Tensor


class Points(Protocol[S]):
    """Pairs as kernels and searches for neighbours see them."""

    @property
    def concept(self) -> Tensor:
        """(pairs,) numbers of the concepts."""
        ...

    def __len__(self) -> int: ...

    def select(self, rows: Tensor) -> Points[S]: ...

    def kernel(self, rows: Tensor, columns: Tensor, settings: S) -> Tensor:
        """How much learning one pair moves another, (rows, columns) float64."""
        ...

    def pushes(self, rows: Tensor, columns: Tensor) -> Tensor:
        """How much the first step on one pair moves another, whatever their concepts, (rows, columns) float64."""
        ...

    def choose(self, loss: Callable[[S], float]) -> S:
        """Settings of the smallest `loss`, among those that are tried."""
        ...

    def nearest(self, pairs: PairSet, *, opposite: bool) -> Neighbours:
        """The nearest pair that says the same, or the opposite. pairs: of these points"""
        ...
