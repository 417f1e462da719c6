"""Which pairs are likely to have their responses exchanged? Those that all other pairs foresee the other way round.

1. Settings of the kernel and ridge: the smallest leave-one-out squared loss of the labels as given.
2. Left-out margins r_{-i}; P(wrong) of every pair from them (`calibrate`).
3. Suspects are softened: targets become 1 - 2 P(wrong), so that a wrong label no longer pulls at its neighbours; twice.

Left-out margins take nothing from a pair's own label, except by way of the other pairs' P(wrong) in step 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.calibrate import Noise, fit_noise
from margincast.diagnose.leave_one_out import Spectrum, spectrum
from margincast.diagnose.points import Points, S, Settings

RIDGES = tuple(10 ** (k / 4) for k in range(-10, 9))
# Settings are chosen on so many pairs, spread over all: a decomposition of each kernel costs the cube.
CHOOSING = 1500
# A third round changes little and confirms what the first two believed.
ROUNDS = 2


@dataclass(frozen=True)
class Mislabelled:
    """margins: (pairs,) left out, 1 what a right label should have; probability: (pairs,) that the label is wrong"""

    margins: Tensor
    probability: Tensor
    noise: Noise
    ridge: float
    spectrum: Spectrum
    kernel: Settings | None = None


def mislabelled(points: Points[S], settings: S | None = None, seed: int = 0) -> Mislabelled:
    """Of pairs in their own kernel. settings: of it; None chooses."""
    settings = settings or choose(points, seed)
    return mislabelled_in(spectrum(points, settings, seed), points.concept, settings)


def mislabelled_in(within: Spectrum, concept: Tensor, settings: Settings | None = None) -> Mislabelled:
    """The same in any kernel of pairs."""
    ones = torch.ones(len(concept), dtype=within.energies.dtype)
    ridge, _ = best_ridge(within)
    margins = within.left_out(ones, ridge)
    noise = fit_noise(margins, concept)
    for _ in range(ROUNDS):
        margins = within.left_out(1 - 2 * noise.wrong(margins, concept), ridge)
        noise = fit_noise(margins, concept)
    return Mislabelled(margins, noise.wrong(margins, concept), noise, ridge, within, settings)


def best_ridge(within: Spectrum) -> tuple[float, float]:
    """The ridge of the smallest leave-one-out squared loss, relative to the mean energy per pair, and that loss."""
    ones = torch.ones(len(within.vectors), dtype=within.energies.dtype)
    scale = float(within.energies.sum()) / len(ones) or 1.0  # of pairs that nothing tells apart
    losses = [float((1 - within.left_out(ones, ridge * scale)).square().mean()) for ridge in RIDGES]
    best = min(range(len(RIDGES)), key=losses.__getitem__)
    return RIDGES[best] * scale, losses[best]


def choose(points: Points[S], seed: int = 0) -> S:
    """Settings of the kernel by the leave-one-out loss of at most `CHOOSING` pairs."""
    generator = torch.Generator().manual_seed(seed)
    some = points.select(torch.randperm(len(points), generator=generator)[:CHOOSING].sort().values)
    return some.choose(lambda settings: best_ridge(spectrum(some, settings))[1])
