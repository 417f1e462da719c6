"""A training step on one card: ours against TRL's, on random models of the shapes people train; toy ones on a CPU.

`python -m benchmarks gpu` takes five minutes at most: what has no time left, and what is not installed, it names. Sides
take turns with the card, each in a process of its own. Token ids come from $MARGINCAST_GPU_TOKENS
(`benchmarks.gpu.tokens`), or are made from $MARGINCAST_PERSONA_DIR and $MARGINCAST_DATA_DIR.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from benchmarks.gpu.side import SHAPES, Measured
from benchmarks.gpu.tokens import JOBS
from benchmarks.harness import Row, seconds

LIMIT = 300.0
PLAN = {
    "toy": ("frozen", "ours", "trl-best", "packed", "trl"),
    "1b": ("frozen", "ours", "trl-best", "packed", "trl", "trl-flash"),
    "7b": ("ours",),
}
NEEDS = {"trl": "trl", "trl-best": "trl", "packed": "trl", "trl-flash": "flash_attn"}
NAMES = {
    "trl": "TRL default",
    "trl-best": "TRL, reference precomputed, no checkpointing",
    "trl-flash": "the same with FlashAttention 2",
}
TARGETS = {"persona": ">= 2", "hh": ">= 2.5", "chat": ">= 1.3"}


def rows() -> Iterator[Row]:
    end, cuda = time.monotonic() + LIMIT, torch.cuda.is_available()
    peak = peak_flops("cuda" if cuda else "cpu")
    for shape in ("1b", "7b") if cuda else ("toy",):
        sides = {side: found for side in PLAN[shape] if (found := run(side, shape, end))}
        if "frozen" in sides:
            yield frozen_row(shape, sides.pop("frozen")["frozen"])
        for job in JOBS:
            yield from rows_of(shape, job, {side: found[job] for side, found in sides.items() if job in found}, peak)


def run(side: str, shape: str, end: float) -> dict[str, Measured]:
    """What `side` measured, by job; nothing, and a line that says why, where it could not."""
    left, needed = end - time.monotonic(), NEEDS.get(side, "torch")
    if find_spec(needed) is None:
        return skipped(side, shape, f"{needed} is not installed")
    if left <= 0:
        return skipped(side, shape, f"the {LIMIT:.0f} s are over")
    command = [sys.executable, "-m", "benchmarks.gpu.side", side, shape]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=left)
        lines, problem = ended.stdout, ended.returncode and (ended.stderr.strip().splitlines() or ["?"])[-1]
    except subprocess.TimeoutExpired as over:
        lines, problem = over.stdout.decode() if over.stdout else "", f"the {LIMIT:.0f} s are over"
    if problem:
        skipped(side, shape, str(problem))
    measured = [Measured(**json.loads(line)) for line in lines.splitlines()]
    for each in measured:
        if each.failed:
            skipped(f"{side}, {each.job}", shape, each.failed)
    return {each.job: each for each in measured if not each.failed}


def skipped(side: str, shape: str, why: str) -> dict[str, Measured]:
    print(f"no numbers of {side} at {shape}: {why}", file=sys.stderr)
    return {}


def frozen_row(shape: str, found: Measured) -> Row:
    """Seconds of forecast, decomposition and attribution; agrees where contributions sum to the margins."""
    title = f"{shape} forecast, decompose and attribution of hh pairs, {found.distinct:.0f} response tokens: seconds"
    return Row(
        title, "-", found.norms[0] <= 1e-3, found.step, found.step, found.step, "<= 20" if shape == "1b" else "-",
        found.step, peak_memory_ours=found.peak or None,
    )  # fmt: skip


def rows_of(shape: str, job: str, sides: dict[str, Measured], peak: float) -> Iterator[Row]:
    """Ours against each side, against the best of them, and against what the card can do."""
    if "ours" not in sides:
        return
    ours, packed = sides.pop("ours"), sides.pop("packed", None)
    batch = SHAPES[shape].batch or JOBS[job].batch
    title = f"{shape} {job} batch {batch}, {ours.distinct:.0f} of {ours.padded:.0f} tokens"
    best = min(sides, key=lambda side: sides[side].step, default=None)
    for side, theirs in sides.items():
        target = TARGETS[job] if side == best and shape == "1b" else "-"
        yield compared(f"{title}: step", NAMES[side], ours, theirs, target)
        if ours.peak:
            ratio = ours.peak / theirs.peak
            yield Row(
                f"{title}: memory", NAMES[side], None, ratio, ratio, ratio,
                "<= 0.35" if target != "-" and job == "hh" else "-", ours.step, theirs.step, ours.peak, theirs.peak,
            )  # fmt: skip
    if packed and best:
        yield compared(f"{title}: step of PackedDPOTrainer", NAMES[best], packed, sides[best], "-")
    share = sorted(ours.flops / one / peak for one in ours.seconds)
    yield Row(
        f"{title}: {ours.distinct / ours.step:.0f} distinct tokens/s", f"{peak / 1e12:.3g} TFlop/s of one product",
        None, share[len(share) // 2], share[0], share[-1], ">= 0.3" if shape == "1b" else "-", ours.step,
        peak_memory_ours=ours.peak,
    )  # fmt: skip


def compared(title: str, name: str, ours: Measured, theirs: Measured, target: str) -> Row:
    """Times of one step over those of the same batch, and whether losses and gradient norms are the same."""
    ratios = sorted(their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True))
    allowed = 2e-2 if torch.cuda.is_available() else 1e-4
    pairs = [*zip(ours.losses, theirs.losses, strict=True), *zip(ours.norms, theirs.norms, strict=True)]
    agrees = all(abs(our - their) <= allowed * abs(their) for our, their in pairs)
    middle = theirs.step / ours.step
    memory = (ours.peak, theirs.peak)
    return Row(title, name, agrees, middle, ratios[0], ratios[-1], target, ours.step, theirs.step, *memory)


def peak_flops(device: str) -> float:
    """Operations per second of one large product: bfloat16 on a card, float32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    square = torch.randn(size, size, device=device, dtype=dtype)

    def product() -> None:
        _ = square @ square
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / min(seconds(product, 5))
