"""Forecast, decomposition and attribution of chat pairs on the unembedding of a model of some shape, on one device."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from benchmarks.gpu.side import BETA, SHAPES, Measured, Shape
from benchmarks.gpu.tokens import batches
from margincast.features.positions import Positions, laid_out
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.frozen.tokens.pushes import decompose
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet

PAIRS, STEPS, TARGETS = 60, 20, 8


def positions_of(shape: Shape, pairs: int, device: str) -> Positions:
    """Random features and a random unembedding: the arithmetic asks for no others. As many pairs are held out."""
    generator = torch.Generator().manual_seed(0)
    drawn = batches("hh", shape.vocabulary).pairs[: 2 * pairs]
    splits = [PairSet(drawn[:pairs]), PairSet(drawn[pairs:])]
    features = []
    for split in splits:
        sides = [ids_of(side, shape.max_length) for pair in split for side in (pair.chosen, pair.rejected)]
        hidden = torch.randn(sum(map(len, sides)), shape.hidden, generator=generator)
        features.append(
            replace(laid_out(sides, {"hidden": hidden, "reference": hidden[:, 0].double()}, 1.0), reference=None)
        )
    unembedding = torch.randn(shape.vocabulary, shape.hidden, generator=generator) / shape.hidden**0.5
    return Positions(features[0], features[1], splits[0], splits[1], unembedding, None, "random", device=device)


def ids_of(side: object, most: int) -> list[int]:
    """The token ids that are a response's text."""
    return [int(word) for word in str(side).split()][:most]


def measure(name: str, device: str, pairs: int = PAIRS, steps: int = STEPS) -> Measured:
    """Seconds of the three together. norms: what the attributions leave of the margins, relative to the largest"""
    positions = positions_of(SHAPES[name], pairs, device)
    recipe = Recipe(train="head", beta=BETA, learning_rate=1e-4, max_steps=steps, eval_steps=steps)
    found = Measured("frozen", distinct=len(positions.train.target) + len(positions.heldout.target))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run = forecast_positions(positions, recipe)
    decompose(positions, positions.heldout_pairs[0].id, recipe)
    attributions = run.attributions([run.target(k) for k in range(min(TARGETS, pairs))])
    found.seconds = [time.perf_counter() - start]  # results are on the CPU: nothing is left to wait for
    largest = max(abs(each.margin) for each in attributions)
    found.norms = [max(abs(each.residual) for each in attributions) / largest]
    found.peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return found
