"""How sure is a forecast? Many runs drawn around it, differing from it as true runs differ from forecasts of them.

A run has its own amplitude, overall and of every concept; its own offsets, shared and of every concept; and its own
noise of pairs. How large each is was measured on runs that the forecast had not seen, and so was what accuracies are
missed by, which is drawn directly: in the standard deviation sqrt(p (1 - p)) of a pair that is learned with
probability p, they are missed by about as much near 60% as near 95%. Quantiles of the drawn runs are the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.intervals import Estimate
from margincast.trained.offset import Kind

LEVEL = 0.9
DRAWS = 1000
SURE = 0.03  # of accuracy


@dataclass(frozen=True)
class Noise:
    """Standard deviations.

    amplitude: of log A at the end of the run;  early: what -log x adds to it, x the part of the path behind
    concept: of log A of a concept against all
    pair: of a pair's margin, relative to the spread of the forecast;  kept: how much of that spread is true
    accuracy: of a concept's accuracy at the end over sqrt(p (1 - p));  accuracy_early: what 1 - x adds to it
    common: the correlation of what the accuracies of two concepts of a run are missed by
    shared, own: of the offsets in nats, times L^reach;  reach: with L the path length in units of `time.UNIT`
    """

    amplitude: float
    early: float
    concept: float
    pair: float
    kept: float
    accuracy: float
    accuracy_early: float
    common: float
    shared: float
    own: float
    reach: float

    def times(self, factor: float, *names: str) -> Noise:
        """With those of `names` `factor` times as large."""
        return replace(self, **{name: factor * getattr(self, name) for name in names})


def drawn_runs(
    rest: Tensor,
    shift: Tensor,
    lengths: Tensor,
    concepts: Tensor,
    kinds: tuple[Sequence[Kind], Sequence[Kind]],
    noise: Noise,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Margins of `DRAWS` runs around a forecast, step by step, (draws, pairs) float64 each; a draw is one run.

    rest, shift: (steps, pairs) margins over beta without and from offsets;  lengths: (steps,) path length in units
    concepts: (pairs,) numbers of concepts;  kinds: shared by all concepts, and of every concept
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared, own = kinds
    count, names = rest.shape[1], int(concepts.max()) + 1
    of_run, of_concept, of_pair = normal(DRAWS, 1), normal(DRAWS, names), normal(DRAWS, count)
    offsets = noise.shared * normal(DRAWS, len(shared)) @ _signs(shared, count)
    offsets += noise.own * normal(DRAWS, len(own)) @ _signs(own, count) if names > 1 else 0.0
    for margins, shifts, length in zip(rest.double(), shift.double(), lengths.double(), strict=True):
        left = float((lengths[-1] / length).log()) if length > 0 else 0.0
        spread = (noise.amplitude + noise.early * left) * of_run + noise.concept * of_concept[:, concepts]
        # What a forecast says of single pairs is partly noise itself: that part is replaced, and not added to.
        pairs = margins.mean() + noise.kept * (margins - margins.mean()) + noise.pair * margins.std() * of_pair
        drawn = spread.exp() * pairs
        yield drawn + shifts + float(length) ** noise.reach * offsets * float(length > 0)


def _signs(kinds: Sequence[Kind], pairs: int) -> Tensor:
    return torch.stack([kind.sign for kind in kinds]) if kinds else torch.zeros(0, pairs, dtype=torch.float64)


def interval(draws: Tensor) -> Estimate:
    """The median of (draws,) with the central `LEVEL` of them."""
    quantiles = torch.tensor([0.5, 0.5 - LEVEL / 2, 0.5 + LEVEL / 2], dtype=torch.float64)
    value, low, high = torch.quantile(draws.double(), quantiles).tolist()
    return Estimate(value, low, high)


def drawn_accuracies(forecast_shares: Tensor, sizes: Tensor, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
    """Accuracies of `DRAWS` runs around those of a forecast, (draws, steps, concepts + 1); of all pairs last.

    forecast_shares: (steps, concepts) shares of pairs with a positive margin;  sizes: (concepts,) pairs of each
    x: (steps,) parts of the path that are behind; at 0 nothing is learned, and nothing unknown
    """
    generator = torch.Generator().manual_seed(seed)
    count = forecast_shares.shape[1]
    of_run, own = (torch.randn(DRAWS, n, generator=generator, dtype=torch.float64) for n in (1, count))
    missed = math.sqrt(noise.common) * of_run + math.sqrt(1.0 - noise.common) * own
    size = (noise.accuracy + noise.accuracy_early * (1.0 - x.double())) * (x > 0)
    drawn = forecast_shares.double() + size[:, None] * spread_of(forecast_shares.double()) * missed[:, None, :]
    drawn = drawn.clamp(0.0, 1.0)
    every = drawn @ (sizes.double() / sizes.sum())
    return torch.cat([drawn, every[..., None]], dim=-1)


def learned(margins: Tensor, groups: Iterable[Sequence[int]]) -> Tensor:
    """The share of every group's pairs with a positive margin, (..., groups). margins: (..., pairs);  groups: rows"""
    return torch.stack([(margins[..., list(rows)] > 0).double().mean(-1) for rows in groups], dim=-1)


def spread_of(accuracy: Tensor) -> Tensor:
    """sqrt(p (1 - p)), p kept away from 0 and 1: a forecast of 100% may be wrong too."""
    p = accuracy.clamp(SURE, 1.0 - SURE)
    return (p * (1.0 - p)).sqrt()
