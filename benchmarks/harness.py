"""How is a comparison timed? Both sides in turn, after they agreed; medians, and the ratio's spread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from margincast.runs.save import peak_memory_bytes


@dataclass(frozen=True)
class Row:
    """One comparison. Ratios are peer over ours, so that larger is better for us; `target` says what was promised.

    agrees: whether the two gave the same numbers, checked before timing; None where there is nothing to compare
    peak memory in bytes; None where it was not measured
    """

    name: str
    peer: str
    agrees: bool | None
    ratio_median: float
    ratio_low: float
    ratio_high: float
    target: str
    seconds_ours: float
    seconds_peer: float | None = None
    peak_memory_ours: int | None = None
    peak_memory_peer: int | None = None

    def line(self) -> str:
        title = f"{self.name} | {self.peer}"
        peer = "" if self.seconds_peer is None else f"{self.seconds_peer:.4g}"
        agrees = {True: "yes", False: "NO", None: "-"}[self.agrees]
        return (
            f"{title:58} {agrees:6} {self.ratio_median:9.3g} {self.ratio_low:9.3g} {self.ratio_high:9.3g}  "
            f"{self.target:9} {self.seconds_ours:9.4g} {peer}"
        )


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Times of `repeats` runs of `work` after one to warm up."""
    work()
    return [seconds_once(work) for _ in range(repeats)]


def compare(
    name: str,
    peer: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    target: str,
    *,
    agrees: bool | None,
    repeats: int = 9,
    scale: float = 1.0,
) -> Row:
    """Time both in turn, `repeats` times after a warm-up. scale: how many times more work the peer's figure is for."""
    ours()
    theirs()
    pairs = [(seconds_once(ours), scale * seconds_once(theirs)) for _ in range(repeats)]
    ratios = sorted(second / first for first, second in pairs)
    first, second = (median(side) for side in zip(*pairs, strict=True))
    return Row(name, peer, agrees, median(ratios), ratios[0], ratios[-1], target, first, second)


def seconds_once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    """Whether the largest difference is at most `tolerance` of the largest number of `theirs`."""
    return bool((ours.double() - theirs.double()).abs().max() <= tolerance * theirs.double().abs().max())


def ceilings() -> dict[str, float]:
    """What this machine can do at most: reading from memory, float32 products; and how busy others keep it."""
    numbers = torch.ones(1 << 26)
    square = torch.randn(2048, 2048)
    return {
        "read_GB_per_s": numbers.numel() * 4 / min(seconds(numbers.sum, 9)) / 1e9,
        "GFlop_per_s": 2 * 2048**3 / min(seconds(lambda: square @ square, 5)) / 1e9,
        "threads": float(torch.get_num_threads()),
        "load_average": os.getloadavg()[0],
        "peak_memory_MB": peak_memory_bytes() / 1e6,
    }
