"""How many pairs are enough, and what would more of them be worth? Runs at 1/8, 1/4, 1/2 and all of the pairs.

A curve is flat from the smallest size that no larger one is better than beyond noise, that of the held-out pairs and
that of choosing. What more pairs bring goes by the last doubling: g for twice as many, g log2(1 + n/N) for n more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2

import numpy as np
import torch
from torch import Tensor

from margincast.intervals import Estimate, Values
from margincast.records import PairSet
from margincast.selection.judging import Judge, choosing_noise, differences, estimate

SHARES = (8, 4, 2, 1)  # a curve's sizes: one in so many
NEXT = 1000  # pairs whose worth is told
CONCEPTS = 12  # the largest, of which half is left out


@dataclass(frozen=True)
class Half:
    """What a random half of a concept's pairs brings beside the other half and all other pairs.

    pairs: that are left out;  target: gain of accuracy of all judging pairs;  own: of those of the concept, if any
    """

    pairs: int
    target: Estimate
    own: Estimate | None


@dataclass(frozen=True)
class Budget:
    """sizes: numbers of pairs;  curves: accuracy at each of them by rule;  flat_from: size, by rule
    doubling: gain of accuracy from half of the pairs, at random, to all;  next_worth: of `NEXT` more pairs
    """

    sizes: tuple[int, ...]
    curves: dict[str, tuple[Estimate, ...]]
    flat_from: dict[str, int]
    doubling: Estimate
    next_pairs: int
    next_worth: float
    concepts: dict[str, Half]


def budget_of(
    end: Callable[[Tensor], Tensor],
    kept: Callable[[Tensor, Tensor, int], Tensor],
    values: Mapping[str, Sequence[Tensor]],
    pairs: PairSet,
    judge: Judge,
    whole: Tensor,
) -> Budget:
    """end: held-out margins after the run on some rows;  kept: the rows of the largest values, ties by a draw
    values: by rule, of random parts (the first rule) one for each;  whole: (M,) margins of the run on all pairs
    """
    count, draw = len(pairs), next(iter(values.values()))[0]
    sizes = tuple(sorted({max(1, count // share) for share in SHARES}))
    right: dict[str, list[Values]] = {}
    noises = np.zeros(len(sizes))
    for name, each in values.items():
        ends = [[whole] if size == count else [end(kept(v, draw, size)) for v in each] for size in sizes]
        found = [judge.right(torch.stack(margins)) for margins in ends]
        if not right:
            noises = np.array([choosing_noise(parts) for parts in found])
        right[name] = [parts.mean(axis=0) for parts in found]
    first = next(iter(right.values()))
    half = len(sizes) - min(2, len(sizes))
    doubling = differences(first[-1][None], first[half], float(noises[half]), judge.resamples)[0]
    return Budget(
        sizes=sizes,
        curves={name: tuple(estimate(each, judge.resamples) for each in curve) for name, curve in right.items()},
        flat_from={name: _flat_from(sizes, curve, noises, judge) for name, curve in right.items()},
        doubling=doubling,
        next_pairs=NEXT,
        next_worth=doubling.value * log2(1 + NEXT / count),
        concepts=_halves(end, pairs, draw, judge, whole, float(noises[half])),
    )


def _flat_from(sizes: Sequence[int], curve: Sequence[Values], noises: Values, judge: Judge) -> int:
    """The smallest size that no larger one is better than beyond noise."""
    for place, size in enumerate(sizes[:-1]):
        larger = np.stack(curve[place + 1 :])
        if all(gap.low <= 0 for gap in differences(larger, curve[place], float(noises[place]), judge.resamples)):
            return size
    return sizes[-1]


def _halves(
    end: Callable[[Tensor], Tensor], pairs: PairSet, draw: Tensor, judge: Judge, whole: Tensor, noise: float
) -> dict[str, Half]:
    """Of the largest concepts, where there are several. noise: of choosing half of all pairs, more than of one's"""
    counts = pairs.counts
    names = sorted(counts, key=lambda name: -counts[name])[:CONCEPTS] if len(counts) > 1 else []
    found = {}
    for name in names:
        mine = torch.tensor([pair.concept == name for pair in pairs])
        rows = mine.nonzero().squeeze(1)
        gone = rows[draw[rows].argsort(stable=True)[: len(rows) // 2]]
        if not len(gone):
            continue
        left = torch.ones(len(pairs), dtype=torch.bool)
        left[gone] = False
        after = end(left.nonzero().squeeze(1))
        gains = [
            differences(each.right(whole[None]), each.right(after[None])[0], noise, each.resamples)[0]
            for each in (judge, judge.of_concept(name))
            if len(each.rows)
        ]
        found[name] = Half(len(gone), gains[0], gains[1] if len(gains) > 1 else None)
    return found
