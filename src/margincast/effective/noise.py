"""How sure is a forecast? Many runs drawn around it, differing from it as true runs differ from forecasts of them.

A run has its own amplitude, overall and of every concept; its own offsets, shared and of every concept; and its own
noise of pairs. How large each is was measured on runs that the forecast had not seen. Accuracies and mean margins of
the drawn runs spread as those of real runs should; their quantiles are the interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.effective.offset import Kind
from margincast.intervals import Estimate

LEVEL = 0.9
DRAWS = 1000


@dataclass(frozen=True)
class Noise:
    """Standard deviations.

    amplitude: of log A at the end of the run;  early: what -log x adds to it, x the part of the path behind
    concept: of log A of a concept against all
    pair: of a pair's margin, relative to the spread of the forecast;  kept: how much of that spread is true
    points: of the accuracy of a concept, what the rest leaves unexplained
    shared, own: of the offsets in nats, times L^reach;  reach: with L the path length in units of `time.UNIT`
    """

    amplitude: float
    early: float
    concept: float
    pair: float
    kept: float
    points: float
    shared: float
    own: float
    reach: float

    def times(self, factor: float) -> Noise:
        """Noise of amplitudes `factor` times as large."""
        larger = {name: factor * getattr(self, name) for name in ("amplitude", "early", "concept")}
        return replace(self, **larger)


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


def accuracies(draws: Tensor, rows: Sequence[int], points: float) -> Tensor:
    """The accuracy of every draw on some of the pairs, (draws,). points: of `Noise`"""
    unexplained = torch.randn(len(draws), generator=torch.Generator().manual_seed(len(rows)), dtype=torch.float64)
    return ((draws[:, list(rows)] > 0).double().mean(1) + points * unexplained).clamp(0.0, 1.0)
