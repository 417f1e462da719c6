"""How sure is a forecast? Many runs drawn around it, differing from it as true runs differ from forecasts of them.

A run has its own amplitude, overall and of every concept; its own offsets, shared and of every concept; and its own
noise of pairs. How large each is was measured on runs left out of the fit. So was the error of accuracies, which is
drawn directly: in units of sqrt(p (1 - p)), the standard deviation of a pair that is learned with probability p, it is
about as large near 60% as near 95%. Quantiles of the drawn runs are the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.intervals import Estimate
from margincast.trained.offset import Kind

COVERAGE = 0.9
DRAWS = 1000
SURE = 0.03  # of accuracy


@dataclass(frozen=True)
class Noise:
    """Standard deviations.

    amplitude: of log A at the end of the run;  amplitude_early: what -log x adds to it, x the part of the path behind
    concept: of log A of a concept against all
    pair: of a pair's margin, relative to the spread of the forecast
    pair_slope: how much of the spread of the forecast is in the run too, a slope of regression
    accuracy: of a concept's accuracy at the end over sqrt(p (1 - p));  accuracy_early: what 1 - x adds to it
    accuracy_correlation: of the errors of the accuracies of two concepts of a run
    shared_offset, concept_offset: of the offsets in nats, times L^offset_power; L: the path length in `time.UNIT`s
    """

    amplitude: float
    amplitude_early: float
    concept: float
    pair: float
    pair_slope: float
    accuracy: float
    accuracy_early: float
    accuracy_correlation: float
    shared_offset: float
    concept_offset: float
    offset_power: float

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

    of_all, of_concepts = kinds
    count, names = rest.shape[1], int(concepts.max()) + 1
    of_run, of_concept, of_pair = normal(DRAWS, 1), normal(DRAWS, names), normal(DRAWS, count)
    offsets = noise.shared_offset * normal(DRAWS, len(of_all)) @ _signs(of_all, count)
    concept_offsets = noise.concept_offset * normal(DRAWS, len(of_concepts)) @ _signs(of_concepts, count)
    offsets += concept_offsets if names > 1 else 0.0
    for margins, shift_at, length in zip(rest.double(), shift.double(), lengths.double(), strict=True):
        left = float((lengths[-1] / length).log()) if length > 0 else 0.0
        spread = (noise.amplitude + noise.amplitude_early * left) * of_run + noise.concept * of_concept[:, concepts]
        # What a forecast says of single pairs is partly noise itself: that part is replaced, and not added to.
        pairs = margins.mean() + noise.pair_slope * (margins - margins.mean()) + noise.pair * margins.std() * of_pair
        drawn = spread.exp() * pairs
        yield drawn + shift_at + float(length) ** noise.offset_power * offsets * float(length > 0)


def _signs(kinds: Sequence[Kind], pairs: int) -> Tensor:
    return torch.stack([kind.sign for kind in kinds]) if kinds else torch.zeros(0, pairs, dtype=torch.float64)


def interval(draws: Tensor) -> Estimate:
    """The median of (draws,) with the central `COVERAGE` of them."""
    quantiles = torch.tensor([0.5, 0.5 - COVERAGE / 2, 0.5 + COVERAGE / 2], dtype=torch.float64)
    value, low, high = torch.quantile(draws.double(), quantiles).tolist()
    return Estimate(value, low, high)


def drawn_accuracies(forecast_shares: Tensor, sizes: Tensor, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
    """Accuracies of `DRAWS` runs around those of a forecast, (draws, steps, concepts + 1); of all pairs last.

    forecast_shares: (steps, concepts) shares of pairs with a positive margin;  sizes: (concepts,) pairs of each
    x: (steps,) parts of the path that are behind; at 0 nothing is learned, and nothing unknown
    """
    generator = torch.Generator().manual_seed(seed)
    count = forecast_shares.shape[1]
    of_run, of_concept = (torch.randn(DRAWS, n, generator=generator, dtype=torch.float64) for n in (1, count))
    errors = math.sqrt(noise.accuracy_correlation) * of_run + math.sqrt(1.0 - noise.accuracy_correlation) * of_concept
    size = (noise.accuracy + noise.accuracy_early * (1.0 - x.double())) * (x > 0)
    drawn = forecast_shares.double() + size[:, None] * binomial_deviation(forecast_shares.double()) * errors[:, None, :]
    drawn = drawn.clamp(0.0, 1.0)
    every = drawn @ (sizes.double() / sizes.sum())
    return torch.cat([drawn, every[..., None]], dim=-1)


def accuracies_of(margins: Tensor, groups: Iterable[Sequence[int]]) -> Tensor:
    """The accuracy of every group: the share of its pairs with a positive margin, (..., groups).

    margins: (..., pairs);  groups: rows of each
    """
    return torch.stack([(margins[..., list(rows)] > 0).double().mean(-1) for rows in groups], dim=-1)


def binomial_deviation(accuracy: Tensor) -> Tensor:
    """sqrt(p (1 - p)), p kept away from 0 and 1: a forecast of 100% may be wrong too."""
    p = accuracy.clamp(SURE, 1.0 - SURE)
    return (p * (1.0 - p)).sqrt()
