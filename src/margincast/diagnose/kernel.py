"""How much does learning one pair move another? The kernel of pairs, with the concept as information.

    K_ij = (delta_i^T delta_j) k(ghat_i, ghat_j) (1 + b [same concept]) / (2 (1 + b))

the kernel C of the pairs (Eq. 10) with k(x, y) = x^T y, or exp(-|x - y|^2 / (2 w^2)) of width w, which lets the
boundary between preferred responses bend. b joins a shared model of all concepts (b = 0) to one model for each (b
large). A constant beside k gives every pair of response tokens an offset of its own, shared by a concept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.neighbours import nearest_single
from margincast.diagnose.points import Neighbours
from margincast.records import FeatureSet, PairSet
from margincast.results import Json

OFFSET = 0.01
WIDTHS = (None, 1.4)
BONDS = (0.0, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class KernelSettings:
    """width: w of the Gaussian, None for the linear kernel; bond: b, how far pairs of one concept belong together"""

    width: float | None = 1.4
    bond: float = 1.0

    def said(self) -> Json:
        return {"kernel_width": self.width, "concept_bond": self.bond}


LINEAR = KernelSettings(width=None, bond=0.0)


@dataclass(frozen=True)
class PairPoints:
    """What the kernel sees of pairs: treated features (pairs, hidden), token ids and concept numbers, (pairs,) each."""

    treated: Tensor
    chosen: Tensor
    rejected: Tensor
    concept: Tensor

    def __len__(self) -> int:
        return len(self.treated)

    def select(self, rows: Tensor) -> PairPoints:
        return PairPoints(self.treated[rows], self.chosen[rows], self.rejected[rows], self.concept[rows])

    def kernel(self, rows: Tensor, columns: Tensor, settings: KernelSettings) -> Tensor:
        return pair_kernel(self.select(rows), self.select(columns), settings)

    def pushes(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.kernel(rows, columns, LINEAR)

    def choose(self, loss: Callable[[KernelSettings], float]) -> KernelSettings:
        bonds = bonds_of(self.concept)
        return min((KernelSettings(width, bond) for width in WIDTHS for bond in bonds), key=loss)

    def nearest(self, pairs: PairSet, *, opposite: bool) -> Neighbours:
        return nearest_single(self.treated, self.chosen, self.rejected, pairs, opposite=opposite)


def pair_points(split: FeatureSet, treated: Tensor, concepts: Sequence[str]) -> PairPoints:
    """The pairs of `split` with their `treated` features; `concepts` numbers the concepts."""
    number = {name: k for k, name in enumerate(concepts)}
    return PairPoints(
        treated,
        torch.tensor([ids[0] for ids in split.chosen_ids]),
        torch.tensor([ids[0] for ids in split.rejected_ids]),
        torch.tensor([number[pair.concept] for pair in split.pairs]),
    )


def bonds_of(concept: Tensor) -> tuple[float, ...]:
    """How far pairs of one concept may belong together: not more than others, where there is one concept."""
    return BONDS if bool((concept != concept[0]).any()) else BONDS[:1]


def blocks(count: int, size: int) -> Iterator[Tensor]:
    """The numbers 0 .. count - 1, `size` at a time."""
    return (torch.arange(first, min(first + size, count)) for first in range(0, count, size))


def preference_sharing(a: PairPoints, b: PairPoints) -> Tensor:
    """delta_i^T delta_j / 2, (len(a), len(b)): 1 the same preference, -1 the opposite one, 0 other tokens."""
    shared = torch.zeros(len(a), len(b), dtype=torch.float64)
    for left, right, sign in (
        (a.chosen, b.chosen, 0.5),
        (a.rejected, b.rejected, 0.5),
        (a.chosen, b.rejected, -0.5),
        (a.rejected, b.chosen, -0.5),
    ):
        shared += sign * (left[:, None] == right)
    return shared


def pair_kernel(a: PairPoints, b: PairPoints, settings: KernelSettings) -> Tensor:
    """K between the pairs of `a` and `b`, (len(a), len(b)) float64."""
    left, right = a.treated.double(), b.treated.double()
    kernel = left @ right.T
    if settings.width is not None:
        lengths = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
        kernel = (-(lengths - 2 * kernel).clamp_min(0.0) / (2 * settings.width**2)).exp_()
    kernel += OFFSET
    kernel *= preference_sharing(a, b)
    kernel *= 1 + settings.bond * (a.concept[:, None] == b.concept)
    return kernel / (1 + settings.bond)
