"""One run on features that lie in a file, in a process of its own: `python -m benchmarks.large FILE STEPS`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import full_batch
from margincast.recipe.optimizers.adamw import AdamW


def peak_memory_bytes() -> int:
    """The most memory this process has had (Linux). `ru_maxrss` would count the parent's, from before the exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    features = load_file(sys.argv[1])["hidden"]
    chosen = torch.arange(len(features)) % 2
    space = TokenSpace(features, chosen, 1 - chosen, 0.01, 2)
    before = peak_memory_bytes()
    start = time.perf_counter()
    *_, state = simulate(space, AdamW(1e-5), full_batch(len(space), int(sys.argv[2])), unembedding=space.zeros())
    spent = time.perf_counter() - start
    result = {"seconds": spent, "peak": peak_memory_bytes(), "before": before, "norm": float(state.norm())}
    print(json.dumps({**result, "features": features.numel() * features.element_size()}))


if __name__ == "__main__":
    main()
