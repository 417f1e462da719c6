"""May a forecast of responses of many tokens start? Its memory is said before, and bounded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.cli.inputs import Inputs
from margincast.cli.job import Job
from margincast.errors import InputError
from margincast.recipe.fields import OUTPUT, option
from margincast.recipe.recipe import Recipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How much memory there is."""

    memory_limit: float | None = option(
        None,
        "GB that a forecast of responses of many tokens may take in all; refused before its work where it needs more "
        "[default: what is free]",
        OUTPUT,
        positive=True,
        setting=False,
    )


def say_memory(job: Job, inputs: Inputs, recipe: Recipe, dtype: torch.dtype, limit: float | None) -> None:
    """Say what the forecast of `recipe` in `dtype` will take. Raises `InputError` where that is more than there is."""
    from margincast.frozen.tokens.memory import memory_needed
    from margincast.runs.save import peak_memory_bytes

    rows, head = inputs.encoding.rows, inputs.loaded.model.get_output_embeddings().weight
    positions = sum(len(row.chosen) + len(row.rejected) for row in rows)
    need, held = memory_needed(recipe, (head.shape[0], head.shape[1]), positions, dtype), peak_memory_bytes()
    job.say(f"Memory beside the {held / 1e9:.2g} GB of model and program: about {need}.")
    lower = "give fewer pairs or a smaller --max_length, or an optimizer that remembers less (--optimizer sgd)"
    if limit is not None and held + need.bytes > limit * 1e9:
        raise InputError(
            f"--memory_limit {limit:g}: this forecast takes about {(held + need.bytes) / 1e9:.2g} GB; {lower}"
        )
    free = free_bytes()
    if free is not None and need.bytes > free:
        raise InputError(
            f"this forecast takes about {need.bytes / 1e9:.2g} GB more and {free / 1e9:.2g} GB are free; {lower}"
        )


def free_bytes() -> int | None:
    """Memory that a program may still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = getattr(os, "sysconf_names", {})
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in names else None
