"""`margincast.trl.PackedDPOTrainer` against `trl.DPOTrainer` on SmolLM2: the same configuration, the same batches.

What a user gets by changing the trainer's name. Needs what `benchmarks.packing` needs. Trainers run in processes of
their own: `python -m benchmarks.packed_trl TRAINER SETTINGS DATA` is one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks.harness import Row
from benchmarks.packing import JOBS, TRL, Job, beside, token_counts, train

TARGETS = {"persona": (">= 4", ">= 3"), "hh": (">= 1.5", ">= 1.2")}


def rows() -> Iterator[Row]:
    for name in JOBS:
        for settings, target in zip(TRL, TARGETS[name], strict=True):
            yield step(name, settings, target)


def step(name: str, settings: str, target: str) -> Row:
    """A step of full fine-tuning, with the peak memory of the two processes."""
    job: Job = JOBS[name]
    command = [sys.executable, "-m", "benchmarks.packed_trl"]
    return beside(
        f"PackedDPOTrainer, {job.data} batch {job.batch} ({token_counts(job)} tokens)",
        f"DPOTrainer, {TRL[settings]}",
        ([*command, "packed", settings, name], [*command, "plain", settings, name]),
        target,
    )


if __name__ == "__main__":
    train(sys.argv[2], JOBS[sys.argv[3]], packed_trl=sys.argv[1] == "packed")
