"""Whose margin is attributed? That of one pair, or the mean over a concept or over all pairs of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.records import PairSet


@dataclass(frozen=True)
class Target:
    """A margin, or the mean of several.

    id: of the pair, or the name of what the mean is over;  split: "train" or "heldout"
    rows: the pairs, indices into the split
    """

    id: str
    split: str
    rows: Tensor


@dataclass(frozen=True)
class Sums:
    """What each training pair contributed to each of K targets, (K, N) float64, and what belongs to none, (K,)."""

    values: Tensor
    start: Tensor


def target_of(
    splits: Mapping[str, PairSet], pair: int | str | None = None, concept: str | None = None, split: str = "heldout"
) -> Target:
    """The margin of `pair`, an index into the split or an id; without it the mean over `concept`, or over the split.

    Raises `InputError` for a split, pair or concept that is not there, and for a pair and a concept at once.
    """
    if split not in splits:
        raise InputError(f"split must be 'train' or 'heldout', got {split!r}")
    pairs = splits[split]
    if pair is not None and concept is not None:
        raise InputError("give a pair or a concept, not both")
    if pair is not None:
        index = _place(pairs, pair, split)
        return Target(pairs[index].id, split, torch.tensor([index]))
    rows = [index for index, each in enumerate(pairs) if concept is None or each.concept == concept]
    if not rows:
        known = ", ".join(pairs.concepts)
        raise InputError(f"no {split} pair has the concept {concept!r}; there are: {known}")
    return Target(f"all {split} pairs" if concept is None else concept, split, torch.tensor(rows))


def _place(pairs: PairSet, pair: int | str, name: str) -> int:
    """The index of a pair given by index or id."""
    if isinstance(pair, str):
        found = [index for index, other in enumerate(pairs) if other.id == pair]
        if not found:
            raise InputError(f"no {name} pair has the id {pair!r}")
        return found[0]
    if not 0 <= pair < len(pairs):
        raise InputError(f"pair must lie in 0 .. {len(pairs) - 1} of the {name} pairs, got {pair}")
    return pair
