"""Which of its processes is this? As a launcher, `torchrun` or `accelerate launch`, says in the environment."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def by_deepspeed() -> bool:
    """Whether `accelerate launch` has a configuration of DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("true", "1", "yes")


def first() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"
