"""What does a pass cost on this GPU, and how much memory does it take? Three timed passes, once a model and device.

The time of a pass over n nodes is near a + b n + c n^2. Three sizes give the three numbers, and they the two that
packing asks for: `Costs.fixed` = 2 a / b (a backward pass has as much to do once a pack as the forward pass, which is
timed) and `Costs.mask` = b / c. Memory grows as m n + q n^2; from the two larger passes follows how many nodes fit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from margincast.models.digest import config_digest
from margincast.passes.hooks import unwrapped
from margincast.passes.packing import Costs, pack
from margincast.passes.response_pass import hidden_states
from margincast.passes.tokenize import Encoded
from margincast.runs.store import key_of, write_json

SIZES = (512, 2048, 8192)  # nodes of the timed passes
REPEATS = 3  # of each, the fastest counts: the first one compiles, and finds its kernels
LONGEST = 512  # tokens of a sequence in them
# Of the free memory that packs may take, once a training run's gradients and the two moments of Adam have theirs.
SHARE = 0.8
MOST = 65536
PLANS = "packs"  # folder of the cache


@dataclass(frozen=True)
class Measured:
    """Of passes over `nodes`: `seconds` each took, and `bytes` it held for its backward pass."""

    nodes: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


def calibrated(model: Any, device: torch.device, cache: Path | None) -> tuple[int, Costs, str]:
    """(tokens, costs, source) of packs for `model` on a CUDA device; passes are timed where `cache` has none."""
    name = torch.cuda.get_device_name(device)
    inner = unwrapped(model)
    key = key_of([name, torch.__version__, config_digest(inner), str(inner.dtype), inner.training])
    path = None if cache is None else cache / PLANS / f"{key}.json"
    try:
        kept = json.loads(path.read_text()) if path is not None else {}
        measured = Measured(*(tuple(kept[field]) for field in ("nodes", "seconds", "bytes")))
    except (OSError, ValueError, KeyError):
        measured = measure(model, cuda_clock(device), cuda_bytes(device))
        if path is not None:
            write_json(path, asdict(measured))
    return tokens_of(measured, room(model, device)), costs_of(measured), f"measured on {name}"


def measure(model: Any, clock: Callable[[], float], held: Callable[[], int], sizes: Sequence[int] = SIZES) -> Measured:
    """Time a pass of each of `sizes` with gradients on. clock: seconds;  held: bytes in use"""
    nodes, seconds, taken = [], [], []
    for size in sizes:
        pairs = stand_ins(size, unwrapped(model).config.get_text_config().vocab_size)
        runs = []
        for _ in range(REPEATS):
            before, start = held(), clock()
            with torch.enable_grad():
                states, _ = hidden_states(model, pairs)
            runs.append((clock() - start, held() - before))
            del states
        nodes.append(len(pack([sequence for pair in pairs for sequence in pair.inputs])))
        seconds.append(min(run[0] for run in runs))
        taken.append(max(run[1] for run in runs))
    return Measured(tuple(nodes), tuple(seconds), tuple(taken))


def stand_ins(size: int, vocabulary: int) -> list[Encoded]:
    """Pairs of about `size` nodes: prompts of half of a pair's nodes, responses of a quarter each."""
    count = max(1, round(size / LONGEST))
    quarter = max(2, size // count // 4)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (count, 4 * quarter + 2), generator=draw).tolist()
    return [
        Encoded(tuple(row[: 2 * quarter]), tuple(row[2 * quarter : 3 * quarter + 1]), tuple(row[3 * quarter + 1 :]))
        for row in tokens
    ]


def costs_of(measured: Measured) -> Costs:
    """The costs whose passes take the seconds that were measured. Where noise leaves a number below 0 it is none."""
    powers = torch.tensor([[1.0, n, n * n] for n in measured.nodes], dtype=torch.float64)
    a, b, c = torch.linalg.solve(powers, torch.tensor(measured.seconds, dtype=torch.float64)).tolist()
    if b <= 0.0:  # the fixed part hides all else at these sizes
        return Costs(fixed=float(measured.nodes[-1]), mask=float("inf"))
    return Costs(fixed=max(0.0, 2.0 * a / b), mask=b / c if c > 0.0 else float("inf"))


def tokens_of(measured: Measured, free: int) -> int:
    """How many nodes a pack may have in `free` bytes: at least the smallest size that was measured."""
    (n, m), (first, second) = measured.nodes[-2:], measured.bytes[-2:]
    quadratic = max(0.0, (second / m - first / n) / (m - n))
    linear = max(1.0, first / n - quadratic * n)
    if quadratic * free < 1e-9 * linear**2:
        fitting = free / linear
    else:
        fitting = (-linear + (linear**2 + 4.0 * quadratic * free) ** 0.5) / (2.0 * quadratic)
    return int(min(MOST, max(measured.nodes[0], fitting)))


def room(model: Any, device: torch.device) -> int:
    """Bytes that packs may take, beside the gradients and moments of the trainable weights that have none yet."""
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    trained = [weight for weight in model.parameters() if weight.requires_grad and weight.grad is None]
    return max(0, int(SHARE * (free - 3 * sum(weight.numel() * weight.element_size() for weight in trained))))


def cuda_clock(device: torch.device) -> Callable[[], float]:
    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def cuda_bytes(device: torch.device) -> Callable[[], int]:
    return lambda: torch.cuda.memory_allocated(device)
