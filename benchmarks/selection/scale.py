"""Are 100,000 pairs chosen from in under two minutes, and is time linear in them?

    python -m benchmarks.selection.scale 100000     one size, as JSON: what `rows` starts, a process of its own

Features are made, of SmolLM2's width and single tokens; the call is the public one, with every rule.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from benchmarks.harness import Row
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, Pair, PairSet
from margincast.runs.save import peak_memory_bytes
from margincast.selection import select

SIZES, HELDOUT, HIDDEN, CONCEPTS, TOKENS = (25_000, 100_000), 2_000, 576, 8, 4
SECONDS = 120.0
RECIPE = Recipe(train="head", learning_rate=1e-4, max_steps=60)


def rows() -> Iterator[Row]:
    for size in SIZES:
        words = [sys.executable, "-m", "benchmarks.selection.scale", str(size)]
        result = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        seconds, beyond = result["seconds"], (result["peak"] - result["before"]) / result["features"]
        title = f"select, {size:,} pairs of width {HIDDEN}, {result['rules']} rules"
        yield Row(title, "two minutes", seconds < SECONDS, seconds, seconds, seconds, "< 120", seconds)
        yield Row(
            title, "memory, in features", None, beyond, beyond, beyond, "", seconds, peak_memory_ours=result["peak"]
        )


def made(count: int, name: str, seed: int) -> FeatureSet:
    """Pairs that prefer one of `TOKENS` to another, by a direction of their concept; a tenth is wrong."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, HIDDEN, generator=generator)
    concept = torch.arange(count) % CONCEPTS
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, 1.0, -1.0)
    hidden[torch.arange(count), concept] += 4 * sign
    hidden[:, CONCEPTS] += 10.0
    right = (sign > 0) ^ (torch.rand(count, generator=generator) < 0.1)
    first = 2 * (concept % (TOKENS // 2))
    chosen, rejected = torch.where(right, first, first + 1).tolist(), torch.where(right, first + 1, first).tolist()
    pairs = tuple(
        Pair(f"{name}:{k}", f"concept {k % CONCEPTS}", f"{name} {k}?", f" {win}", f" {lose}", f"{name}.jsonl", k + 1)
        for k, (win, lose) in enumerate(zip(chosen, rejected, strict=True))
    )
    sums = torch.randn(2, count, generator=generator, dtype=torch.float64)
    ids = [tuple((token,) for token in side) for side in (chosen, rejected)]
    return FeatureSet(PairSet(pairs), hidden, ids[0], ids[1], sums[0], sums[1])


def main(count: int) -> None:
    train, heldout = made(count, "train", 0), made(HELDOUT, "heldout", 1)
    unembedding = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))
    features = Features(train, heldout, torch.arange(TOKENS), unembedding, "made", "made")
    before, start = peak_memory_bytes(), time.perf_counter()
    found = select(features, RECIPE, keep=0.5)
    seconds = time.perf_counter() - start
    size = train.hidden.numel() * train.hidden.element_size()
    result = {"seconds": seconds, "before": before, "peak": peak_memory_bytes(), "features": size}
    print(json.dumps({**result, "rules": len(found.rules), "advice": found.advice}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
