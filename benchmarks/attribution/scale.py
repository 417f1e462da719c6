"""Are the 50 training pairs that matter most found for 1,000 targets among 100,000 pairs, in minutes and little memory?

Random float32 features of width 4,096 with a shared component lie in a file; each run is a process of its own
(`python -m benchmarks.attribution.scale FILE OPTIMIZER`), which trains for 60 steps and attributes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import Row
from benchmarks.large import peak_memory_bytes
from margincast.frozen.attribution.contributions import account
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.recipe import Recipe

PAIRS, TARGETS, HIDDEN, TOP, STEPS, BLOCK = 100_000, 1_000, 4_096, 50, 60, 10_000
RECIPES = {
    "gradient descent": Recipe(optimizer=GradientDescent(1e-2), max_steps=STEPS, max_grad_norm=0.0),
    "gradient flow": Recipe(optimizer=GradientFlow(1e-1), max_steps=STEPS, eval_steps=STEPS),
    "AdamW, batches of 1,024": Recipe(
        optimizer=AdamW(1e-4, weight_decay=0.1), max_steps=STEPS, per_device_train_batch_size=1024
    ),
}


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.safetensors"
        save_file({"hidden": torch.cat(list(_features(PAIRS)))}, path)
        for name in RECIPES:
            command = [sys.executable, "-m", "benchmarks.attribution.scale", str(path), name]
            result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            title = f"top {TOP} of {PAIRS:,} for {TARGETS:,}, d={HIDDEN}: {name}"
            minutes, agrees = result["seconds"] / 60, result["error"] <= 1e-12
            yield Row(
                title, "minutes", agrees, minutes, minutes, minutes, "minutes", result["seconds"],
                peak_memory_ours=result["peak"],
            )  # fmt: skip
            beyond = (result["peak"] - result["features"]) / 1e9
            yield Row(title, "GB beyond the features", None, beyond, beyond, beyond, "", result["top_seconds"])


def _features(count: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = 5 * torch.randn(HIDDEN, generator=generator)
    for start in range(0, count, BLOCK):
        yield shared + torch.randn(min(BLOCK, count - start), HIDDEN, generator=generator)


def main() -> None:
    features, recipe = load_file(sys.argv[1])["hidden"], RECIPES[sys.argv[2]]
    chosen = torch.arange(len(features)) % 2
    train = TokenSpace(features, chosen, 1 - chosen, recipe.beta, 2)
    held = next(_features(TARGETS)).roll(1, dims=1)
    targets = TokenSpace(held, chosen[:TARGETS], 1 - chosen[:TARGETS], recipe.beta, 2)
    unembedding = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1))
    begin = time.perf_counter()
    found = account(train, recipe, unembedding, [STEPS])[STEPS]
    middle = time.perf_counter()
    top = found.top(targets, TOP)
    end = time.perf_counter()
    wide = TokenSpace(held.double(), targets.chosen, targets.rejected, targets.beta, 2)
    margins = found.margins(wide)
    gap = (top.positive + top.negative + found.start(wide) - margins).abs().max() / margins.abs().max()
    result = {"seconds": end - begin, "top_seconds": end - middle, "peak": peak_memory_bytes(), "error": float(gap)}
    cancels = float(((top.positive - top.negative).max() / margins.abs().max()).item())
    print(json.dumps({**result, "cancels": cancels, "features": features.numel() * features.element_size()}))


if __name__ == "__main__":
    main()
