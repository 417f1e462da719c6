"""How sure is a forecast? Many runs drawn around it, each with its own amplitude, offset and noise of pairs.

A run that a law describes differs from it in three ways, each measured on the runs that the law was fitted without:
log A by `amplitude`, the shared offset by `offset` times A, every pair by `pair` times A. Accuracies and mean margins
of the drawn runs spread as those of real runs should; their quantiles are the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.intervals import Estimate

LEVEL = 0.9
DRAWS = 2000


@dataclass(frozen=True)
class Noise:
    """Standard deviations: of log A; of the offset and of a pair's margin, both relative to A."""

    amplitude: float
    offset: float
    pair: float


def drawn_margins(rest: Tensor, shift: Tensor, sign: Tensor, noise: Noise, seed: int = 0) -> Tensor:
    """Margins of `DRAWS` runs, (draws, pairs), around a forecast.

    rest, shift: (pairs,) margins without the shared offset, and the offset's part
    sign: (pairs,) +1 where the offset raises the margin of the pair, -1 where it lowers it
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = rest.double().mean().abs()
    scale = (noise.amplitude * normal(DRAWS, 1)).exp()
    pairs = rest + noise.pair * size * normal(DRAWS, len(rest))
    return scale * pairs + shift + noise.offset * size * normal(DRAWS, 1) * sign


def interval(value: float, draws: Tensor) -> Estimate:
    """`value` with the central `LEVEL` of `draws`, (draws,)."""
    low, high = torch.quantile(draws.double(), torch.tensor([0.5 - LEVEL / 2, 0.5 + LEVEL / 2], dtype=torch.float64))
    return Estimate(value, float(low), float(high))


def accuracies(draws: Tensor, rows: Sequence[int]) -> Tensor:
    """The accuracy of every draw on some of the pairs, (draws,)."""
    return (draws[:, list(rows)] > 0).double().mean(1)
