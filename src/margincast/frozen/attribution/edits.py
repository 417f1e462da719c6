"""Which other training data is meant? Pairs left out, turned round or repeated, as a record and as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.records import Pair, PairSet


@dataclass(frozen=True)
class Edit:
    """Changes to N training pairs.

    weights: (N,) float64 >= 0, how often each pair is there;  flipped: (N,) bool, whether chosen and rejected swap

    Raises `InputError` for weights that are negative, not finite or all 0.
    """

    weights: Tensor
    flipped: Tensor

    def __post_init__(self) -> None:
        bad = ~(self.weights.isfinite() & (self.weights >= 0))
        if self.weights.shape != self.flipped.shape or self.weights.ndim != 1 or self.flipped.dtype != torch.bool:
            raise InputError("an edit needs a weight and a truth value (flipped) for each training pair")
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise InputError(f"weights of an edit must be numbers >= 0; pair {row} has {float(self.weights[row])}")
        if not bool((self.weights > 0).any()):
            raise InputError("the edit leaves no pair to train on")


Rows = Sequence[int] | Tensor
F = TypeVar("F", bound="Trained")


class Trained(Protocol):
    """Features of a data set, of whatever kind, whose training pairs can be drawn anew."""

    @property
    def train_pairs(self) -> PairSet: ...

    def redrawn(self: F, pairs: PairSet, rows: Tensor, turned: Tensor) -> F:
        """Those of `pairs`, which are the training pairs at `rows`, chosen and rejected swapped where `turned`."""
        ...


def drop(pairs: int, rows: Rows) -> Edit:
    """`pairs` training pairs without those at `rows`. Raises `InputError` for rows that are not there."""
    return Edit(_everywhere(pairs, rows, 1.0, 0.0), torch.zeros(pairs, dtype=torch.bool))


def flip(pairs: int, rows: Rows) -> Edit:
    """Chosen and rejected swapped at `rows`. Raises `InputError` for rows that are not there."""
    return Edit(torch.ones(pairs, dtype=torch.float64), _everywhere(pairs, rows, 0.0, 1.0).bool())


def duplicate(pairs: int, rows: Rows) -> Edit:
    """Those at `rows` twice. Raises `InputError` for rows that are not there."""
    return Edit(_everywhere(pairs, rows, 1.0, 2.0), torch.zeros(pairs, dtype=torch.bool))


def edited(features: F, edit: Edit) -> F:
    """The features of the edited training data; the held-out pairs stay. Copies of a pair follow it, as `ID#2`, ...

    Raises `InputError` for an edit of another number of pairs, or with weights that are not whole numbers.
    """
    check_size(edit, len(features.train_pairs))
    if bool((edit.weights != edit.weights.round()).any()):
        raise InputError("a data set has each pair a whole number of times; `reweighed` takes other weights")
    rows = torch.repeat_interleave(edit.weights.long())
    copies = torch.cat([torch.arange(count) for count in edit.weights.long().tolist()]).tolist()
    turned = edit.flipped[rows]
    pairs = (
        _pair(features.train_pairs[row], turn, copy)
        for row, turn, copy in zip(rows.tolist(), turned.tolist(), copies, strict=True)
    )
    return features.redrawn(PairSet(tuple(pairs)), rows, turned)


def check_size(edit: Edit, pairs: int) -> None:
    """Raises `InputError` for an edit of another number of pairs."""
    if len(edit.weights) != pairs:
        raise InputError(f"the edit is of {len(edit.weights)} training pairs, and there are {pairs}")


def _pair(pair: Pair, turn: bool, copy: int) -> Pair:
    chosen, rejected = (pair.rejected, pair.chosen) if turn else (pair.chosen, pair.rejected)
    return replace(pair, id=f"{pair.id}#{copy + 1}" if copy else pair.id, chosen=chosen, rejected=rejected)


def _everywhere(pairs: int, rows: Rows, usual: float, there: float) -> Tensor:
    index = torch.as_tensor(rows, dtype=torch.long)
    if bool(((index < 0) | (index >= pairs)).any()):
        raise InputError(f"rows of an edit must lie in 0 .. {pairs - 1}")
    values = torch.full((pairs,), usual, dtype=torch.float64)
    values[index] = there
    return values
