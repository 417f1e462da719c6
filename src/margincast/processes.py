"""Which process of a run is this? Runs started by `torchrun` or `accelerate launch` have several, others one.

Answered by `torch.distributed`, once the processes have met; `cli.launch` reads what a launcher says before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from margincast.errors import InputError, StatedFailure

# One process may wait for another's whole part of the work; a process that died is noticed sooner, by its launcher.
PATIENCE = timedelta(days=1)
T = TypeVar("T")
# Why DeepSpeed is refused. ZeRO-3 leaves weights empty outside their modules' own calls, and the head is read outside.
DEEPSPEED = (
    "runs under DeepSpeed are not supported (its ZeRO-3 empties the unembedding that packed passes read, and it has no "
    "build that could be tested); shard with FSDP 2: accelerate launch --config_file examples/paper/fsdp.yaml"
)


def join(device: str) -> None:
    """Meet the other processes that the launcher started; each gets its own accelerator where `device` is one."""
    from accelerate import PartialState

    PartialState(cpu=device == "cpu", timeout=PATIENCE)


def leave(status: int) -> None:
    """Part from the other processes, with nothing left to do. Processes but the first end here, with `status`.

    The interpreter's own end, while threads of the group are at work, aborted one of two gloo processes now and then.
    The first process has it still: trackers write their last lines then.
    """
    if processes() > 1:
        import torch.distributed as dist

        rank = process()
        dist.destroy_process_group()
        if rank > 0:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def process() -> int:
    """The number of this process, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def processes() -> int:
    """How many processes this run has."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def everyone(value: T) -> list[T]:
    """What every process of this run passes here, in the order of their ranks; returns when all have called it.

    Raises `StatedFailure` when another process has ended.
    """
    import torch.distributed as dist

    if processes() == 1:
        return [value]
    values: list[T] = [value] * processes()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise StatedFailure(
            "another process of this run stopped; what is finished is kept, run the same command again"
        ) from error
    return values


def by_first(function: Callable[[], T]) -> T:
    """`function()`, called by process 0 alone; all return its result, or raise its `InputError` or `StatedFailure`."""
    outcome: tuple[T | None, Exception | None] = (None, None)
    if process() == 0:
        try:
            outcome = (function(), None)
        except (InputError, StatedFailure) as error:
            outcome = (None, error)
    result, problem = everyone(outcome)[0]
    if problem is not None:
        raise problem
    return result  # type: ignore[return-value]
