"""How far is C_ij from what its clusters predict, and the margins' velocity from what follows? (Lemmas A.1, A.2)

C_ij = (delta_i^T delta_j)(g_i^T g_j). On the event of Lemma A.1 every entry lies within a fixed distance of a value
that depends only on the clusters of i and j; Lemma A.2 turns this into a statement about dr/dt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from margincast.theory.distribution import Draw, PreferenceDistribution


class Relation(IntEnum):
    """How the clusters of two training pairs are related."""

    SELF = 0
    SAME_CLUSTER = 1
    OPPOSITE_CLUSTER = 2
    INTERACTING_CONCEPT = 3
    UNRELATED_CONCEPT = 4


@dataclass(frozen=True)
class Deviation:
    """One line of Lemma A.1: |C - predicted| <= allowed for every pair of this relation.

    measured: the largest |C - predicted| of a sample, 0 where the sample has no such pair
    """

    relation: Relation
    equation: str
    predicted: float
    allowed: float
    measured: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.allowed


def predicted_kernel(distribution: PreferenceDistribution, epsilon: float) -> dict[Relation, tuple[str, float, float]]:
    """Equation, predicted value and allowed deviation of C for each relation (Eq. 19-23).

    Interacting concepts (Eq. 22-23) are predicted to be 0 with l_b^2 among the deviation, as the lemma has it: the
    sign of delta_i^T delta_j, +1 or -1, differs from token to token.
    """
    shared = distribution.shared_norm**2
    spread = distribution.d * distribution.noise**2
    slack = epsilon * distribution.noise
    return {
        Relation.SELF: ("Eq. 19", 2.0 * (1.0 + shared + spread), 4.0 * slack),
        Relation.SAME_CLUSTER: ("Eq. 20", 2.0 * (1.0 + shared), 4.0 * slack),
        Relation.OPPOSITE_CLUSTER: ("Eq. 21", 2.0 * (1.0 - shared), 4.0 * slack),
        Relation.INTERACTING_CONCEPT: ("Eq. 22-23", 0.0, shared + 2.0 * slack),
        Relation.UNRELATED_CONCEPT: ("no shared token", 0.0, 0.0),
    }


def relations(distribution: PreferenceDistribution, clusters: Tensor) -> Tensor:
    """The `Relation` of every pair of points with these cluster numbers, (points, points)."""
    K = distribution.K
    between = torch.full((2 * K, 2 * K), int(Relation.UNRELATED_CONCEPT))
    for k, members in enumerate(distribution.interacting):
        for m in members:
            between[2 * k : 2 * k + 2, 2 * m : 2 * m + 2] = int(Relation.INTERACTING_CONCEPT)
        between[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = int(Relation.OPPOSITE_CLUSTER)
    between.fill_diagonal_(int(Relation.SAME_CLUSTER))
    table = between[clusters][:, clusters]
    table.fill_diagonal_(int(Relation.SELF))
    return table


def measure_deviations(
    distribution: PreferenceDistribution, draw: Draw, epsilon: float, kernel: Tensor | None = None
) -> tuple[Deviation, ...]:
    """Lemma A.1 line by line on a sample. The event of the lemma holds when every line does.

    kernel: C of the sample, (pairs, pairs), when the caller has it already
    """
    C = draw.space.kernel(draw.space) if kernel is None else kernel
    table = relations(distribution, draw.clusters)
    lines = []
    for relation, (equation, predicted, allowed) in predicted_kernel(distribution, epsilon).items():
        entries = C[table == int(relation)]
        measured = float((entries - predicted).abs().max()) if entries.numel() else 0.0
        lines.append(Deviation(relation, equation, predicted, allowed, measured))
    return tuple(lines)


def predicted_velocity(distribution: PreferenceDistribution, clusters: Tensor, margins: Tensor, beta: float) -> Tensor:
    """Lemma A.2's value of tau dr_j/dt at given training margins, (pairs,): the main terms of Eq. 24."""
    slopes = torch.sigmoid(-margins)
    totals = slopes.new_zeros(2 * distribution.K).index_add_(0, clusters, slopes)
    shared = distribution.shared_norm**2
    same, opposite = totals[clusters], totals[clusters ^ 1]
    itself = distribution.d * distribution.noise**2 * slopes
    return 2.0 * beta**2 / distribution.N * ((1.0 + shared) * same + (1.0 - shared) * opposite + itself)


def velocity_slack(distribution: PreferenceDistribution, margins: Tensor, beta: float, epsilon: float) -> float:
    """Lemma A.2's deviation: how far tau dr_j/dt may be from `predicted_velocity` on the event of Lemma A.1.

    The number of interacting concepts is max_k |S_k|, which can exceed the Z that Eq. 24 prints.
    """
    S = distribution.S
    per_slope = (2 * S + 4) * epsilon * distribution.noise + S * distribution.shared_norm**2
    largest = float(torch.sigmoid(-margins).max())
    return 2.0 * beta**2 * distribution.Q / distribution.N * per_slope * largest
