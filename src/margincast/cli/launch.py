"""Which of its processes is this? As a launcher, `torchrun` or `accelerate launch`, says in the environment."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"
