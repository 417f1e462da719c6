"""Which points lie together, and would they again? k-means, and how far two halves of the points agree on the clusters.

Many problems of one size are solved at once: a problem is a row of the first dimension of every array here.
Clusters of halves agree by chance, too, most of all along a long direction; so agreement is set against that of
Gaussian points with the same spectrum, which have directions and no clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPLITS = 6  # random halvings that an agreement is the mean of
DRAWS = 19  # of points without clusters: the real ones beat all of them by chance once in twenty
RESTARTS, ITERATIONS = 3, 25


@dataclass(frozen=True)
class Stability:
    """How well `count` clusters repeat: the adjusted Rand index between those of two halves, mean over halvings.

    error: standard error of `agreement` over the halvings
    chance: mean agreement of Gaussian points with the same spectrum;  spread: its standard deviation between draws
    """

    count: int
    agreement: float
    error: float
    chance: float
    spread: float

    @property
    def excess(self) -> float:
        """Agreement beyond that of points without clusters and their spread, as a part of what there could be."""
        return (self.agreement - self.chance - self.spread) / self._room

    @property
    def excess_error(self) -> float:
        """Standard error of `excess` over the halvings."""
        return self.error / self._room

    @property
    def _room(self) -> float:
        return max(1.0 - self.chance, 1e-9)


def kmeans(points: Tensor, count: int, generator: torch.Generator, restarts: int = RESTARTS) -> Tensor:
    """Centres (problems, count, width) of `points`, (problems, n, width): the best of `restarts` k-means++ starts."""
    problems = len(points)
    repeated = points.repeat_interleave(restarts, dim=0)
    centres = _starts(repeated, count, generator)
    before: Tensor | None = None
    for _ in range(ITERATIONS):
        nearest = assign(repeated, centres)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        member = torch.nn.functional.one_hot(nearest, count).to(points.dtype).mT
        sizes = member.sum(dim=-1, keepdim=True)
        centres = torch.where(sizes > 0, member @ repeated / sizes.clamp(min=1), centres)
    loss = _distances(repeated, centres).amin(dim=-1).sum(dim=-1).reshape(problems, restarts)
    return centres[loss.argmin(dim=1) + restarts * torch.arange(problems)]


def assign(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of every point, (problems, n)."""
    return torch.baddbmm(centres.square().sum(dim=-1)[:, None], points, centres.mT, alpha=-2).argmin(dim=-1)


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """(problems, n, centres) squared distances."""
    cross = torch.baddbmm(centres.square().sum(dim=-1)[:, None], points, centres.mT, alpha=-2)
    return (cross + points.square().sum(dim=-1, keepdim=True)).clamp(min=0.0)


def _starts(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): starts are drawn by squared distance from those before."""
    problems, n, _ = points.shape
    every = torch.arange(problems)
    centres = points[every, torch.randint(n, (problems,), generator=generator)][:, None]
    nearest = _distances(points, centres)[..., 0]
    for _ in range(1, count):
        mark = torch.rand(problems, 1, generator=generator, dtype=points.dtype) * nearest.sum(dim=1, keepdim=True)
        drawn = (nearest.cumsum(dim=1) < mark).sum(dim=1).clamp(max=n - 1)
        fresh = points[every, drawn][:, None]
        centres = torch.cat([centres, fresh], dim=1)
        nearest = torch.minimum(nearest, _distances(points, fresh)[..., 0])
    return centres


def rand_index(first: Tensor, second: Tensor) -> Tensor:
    """Adjusted Rand index (Hubert and Arabie 1985) of two clusterings, (problems, n) each: (problems,) float64.

    1 for the same clusters, 0 on average for independent ones; 1 where both put all points into one.
    """
    count = int(max(first.max(), second.max())) + 1
    one_hot = torch.nn.functional.one_hot
    table = one_hot(first, count).double().mT @ one_hot(second, count).double()
    together = _choose_two(table).sum(dim=(1, 2))
    rows, columns = (_choose_two(table.sum(dim=dim)).sum(dim=1) for dim in (2, 1))
    expected = rows * columns / _choose_two(table.sum(dim=(1, 2)))
    room = (rows + columns) / 2 - expected
    return torch.where(room > 0, (together - expected) / room, 1.0)


def _choose_two(counts: Tensor) -> Tensor:
    return counts * (counts - 1) / 2


def _repeats(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(problems, SPLITS) each: how far `count` clusters found in two halves agree on all of `points`, and their loss.

    The loss is the mean squared distance of the points from the nearest centre that the other half found.
    """
    n = points.shape[1]
    agreements, losses = [], []
    for _ in range(SPLITS):
        order = torch.randperm(n, generator=generator)
        halves = (order[: n // 2], order[n // 2 :])
        centres = [kmeans(points[:, half], count, generator) for half in halves]
        agreements.append(rand_index(*(assign(points, each) for each in centres)))
        across = [_distances(points[:, half], each) for half, each in zip(halves, reversed(centres), strict=True)]
        losses.append(torch.cat(across, dim=1).amin(dim=-1).mean(dim=1))
    return torch.stack(agreements, dim=1), torch.stack(losses, dim=1)


def stabilities(points: Tensor, counts: Sequence[int], generator: torch.Generator) -> tuple[list[Stability], bool]:
    """The stability of every number of clusters in `points`, (n, width), and whether any is more than chance.

    The columns of `points` are principal components. `DRAWS` Gaussian point sets of the same spectrum are clustered
    like them. A set's score is its agreement less its log-loss, each in standard deviations over all sets, at the
    number of clusters where that is largest. (Agreement alone misses two clusters: halves of points along a line agree
    on where to cut it, too, but lose little by it.) More than chance: no drawn set scores as high, which happens to
    Gaussian points once in `DRAWS` + 1 times.
    """
    wide = points.double()
    drawn = torch.randn(DRAWS, *wide.shape, generator=generator, dtype=wide.dtype) * wide.std(dim=0)
    sets = torch.cat([(wide - wide.mean(dim=0))[None], drawn])
    rows, scores = [], []
    for count in counts:
        agreement, loss = _repeats(sets, count, generator)
        mean = agreement.mean(dim=1)
        scores.append(_standard(mean) - _standard(loss.mean(dim=1).log()))
        rows.append(
            Stability(
                count,
                agreement=float(mean[0]),
                error=float(agreement[0].std()) / SPLITS**0.5,
                chance=float(mean[1:].mean()),
                spread=float(mean[1:].std()),
            )
        )
    largest = torch.stack(scores).amax(dim=0)
    return rows, bool(largest[0] > largest[1:].max())


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp(min=1e-12)
