"""`margincast.trl.PackedDPOTrainer` against `trl.DPOTrainer` on SmolLM2: the same configuration, the same batches.

What a user gets by changing the trainer's name. Needs what `benchmarks.packing` needs. Trainers run in processes of
their own: `python -m benchmarks.packed_trl TRAINER SETTINGS DATA` is one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness import Row, compare
from benchmarks.packing import JOBS, STEPS, TRL, Job, token_counts, train
from benchmarks.peers.turns import Side

TARGETS = {"persona": (">= 4", ">= 3"), "hh": (">= 1.5", ">= 1.2")}


def rows() -> Iterator[Row]:
    for name in JOBS:
        for settings, target in zip(TRL, TARGETS[name], strict=True):
            yield step(name, settings, target)


def step(name: str, settings: str, target: str) -> Row:
    """A step of full fine-tuning, with the peak memory of the two processes."""
    job: Job = JOBS[name]
    command = [sys.executable, "-m", "benchmarks.packed_trl"]
    ours, theirs = (Side([*command, trainer, settings, name]) for trainer in ("packed", "plain"))
    row = compare(
        f"PackedDPOTrainer, {job.data} batch {job.batch} ({token_counts(job)} tokens)",
        f"DPOTrainer, {TRL[settings]}",
        ours.step,
        theirs.step,
        target,
        agrees=None,
        repeats=STEPS - 1,
    )
    ours.close()
    theirs.close()
    losses = zip(ours.losses, theirs.losses, strict=True)
    agrees = all(abs(mine - other) <= 1e-4 * abs(other) for mine, other in losses)
    return replace(row, agrees=agrees, peak_memory_ours=ours.peak, peak_memory_peer=theirs.peak)


if __name__ == "__main__":
    train(sys.argv[2], JOBS[sys.argv[3]], packed_trl=sys.argv[1] == "packed")
