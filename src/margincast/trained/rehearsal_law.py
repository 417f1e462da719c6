"""What does a rehearsal say of the run? How far it gets, the order of its pairs, and its accuracy.

A rehearsal's noise is about the same in nats however far it gets. So the weight of a rehearsal against the frozen shape
grows with the nats it reached: soon for the order of pairs, late for the accuracy of each concept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.trained.amplitude import AmplitudeLaw
from margincast.trained.offset import Parts
from margincast.trained.shape import spread, unit

FLOOR = 2.0  # nats that are added to what a rehearsal reached: below them a rehearsal is all noise


@dataclass(frozen=True)
class RehearsalLaw:
    """How far a run gets by how far its rehearsal got, R: A = (R + 2)^power, times an `AmplitudeLaw` of its own.

    order_nats: how far a rehearsal has got where it counts as much as frozen features do, for the order of pairs
    accuracy_nats: the same for the accuracy of each concept
    shared_offset, concept_offset: the parts of the rehearsal's offsets that the run has too
    """

    amplitude: AmplitudeLaw
    power: float
    order_nats: float
    accuracy_nats: float
    shared_offset: float
    concept_offset: float

    def at(self, reached: float, amplitude: float) -> float:
        """A in nats. reached: R;  amplitude: what `self.amplitude` gives for the run"""
        return float(amplitude * (max(reached, 0.0) + FLOOR) ** self.power)

    def needed(self, end: float, amplitude: float) -> float:
        """The R of a run that ends at A = `end`."""
        return float((end / amplitude) ** (1.0 / self.power)) - FLOOR

    def doubt(self, reached: float) -> float:
        """How much less sure than after a long way a forecast is: the noise times this."""
        return math.sqrt(1.0 + (self.order_nats / max(reached, self.order_nats / 2.0)) ** 2)

    def mixed(self, rehearsed: Tensor, frozen: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
        """A run's shape, from the frozen one and from margins over beta of its rehearsal without offsets, weighed
        twice: for the order of pairs, and for accuracies. (pairs,) with a mean of 1 each."""
        order, level = (trusted(rehearsed, concepts, nats) for nats in (self.order_nats, self.accuracy_nats))
        rehearsal_margins = unit(rehearsed)
        ordered = order * rehearsed / spread(rehearsed) + (1.0 - order) * frozen / spread(frozen)
        return unit(ordered), unit(level * rehearsal_margins + (1.0 - level) * frozen)

    def offsets(self, parts: Parts, concepts: Tensor | None) -> Tensor:
        """What the run's end has of the offsets of a rehearsal, (pairs,). concepts: None where it is all there is

        Labels out of balance show early in what all concepts share; in concepts, only where they are learned.
        """
        trust = torch.ones_like(parts.rest) if concepts is None else trusted(parts.rest, concepts, self.order_nats)
        return self.shared_offset * parts.shared_offset + trust * self.concept_offset * parts.concept_offset


def weight(reached: Tensor, nats: float) -> Tensor:
    """What a rehearsal counts for that reached so many nats, in [0, 1], one half at `nats`."""
    squared = reached.clamp_min(0.0) ** 2
    return squared / (squared + nats**2)


def trusted(rehearsed: Tensor, concepts: Tensor, nats: float) -> Tensor:
    """`weight` of every pair's concept, (pairs,). rehearsed: (pairs,) margins over beta without offsets"""
    sums = torch.zeros(int(concepts.max()) + 1, dtype=torch.float64).index_add(0, concepts, rehearsed)
    return weight(sums / concepts.bincount().clamp_min(1), nats)[concepts]


def levelled(shape: Tensor, level: Tensor, concepts: Tensor) -> Tensor:
    """`shape`, every concept of it moved by one number so that as many of its pairs are positive as in `level`."""
    moved = shape.clone()
    for concept in range(int(concepts.max()) + 1):
        rows = (concepts == concept).nonzero()[:, 0]
        ordered, count = shape[rows].sort(descending=True).values, int((level[rows] > 0).sum())
        if len(rows) and count != int((ordered > 0).sum()):
            # Halfway between the last that is to be positive and the next; beyond the ends a typical step further.
            step = (ordered[0] - ordered[-1]) / len(rows)
            above, below = ordered[max(count - 1, 0)], ordered[min(count, len(rows) - 1)]
            above, below = (above if count else below + step), (below if count < len(rows) else above - step)
            moved[rows] -= (above + below) / 2
    return moved
