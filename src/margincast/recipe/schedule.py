"""How does the learning rate change over a run? The schedules of transformers, by their names."""

from __future__ import annotations

import math
from collections.abc import Callable

from margincast.errors import InputError

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


def schedule(name: str, steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Factor on the learning rate for the step that follows `done` finished steps.

    Raises `InputError` for an unknown name.
    """
    if name not in SCHEDULES:
        raise InputError(f"lr_scheduler_type {name!r} is not known; use one of: {', '.join(SCHEDULES)}")

    def factor(done: int) -> float:
        if name == "constant":
            return 1.0
        if done < warmup_steps:
            return done / max(1, warmup_steps)
        progress = (done - warmup_steps) / max(1, steps - warmup_steps)
        if name == "linear":
            return max(0.0, 1.0 - progress)
        if name == "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        return 1.0

    return factor
