"""Do several processes compute what one does, and do they all stop when one cannot go on?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.optimizers import AdamW
from tests.problems import random_space
from tests.tolerances import TOLERANCE, error

WORKER = """
import sys, os
from datetime import timedelta
import torch, torch.distributed as dist
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.optimizers import AdamW
from margincast.frozen.engine.shards import shard
from margincast.frozen.engine.step import simulate
from margincast.errors import InputError, StatedFailure
from margincast.runs.store import write_tensors
from pathlib import Path
from tests.problems import random_space

rank, world, folder, mode = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world,
                        timeout=timedelta(seconds=20))
space = random_space(31, 17, 4, 0.5, 0, torch.float32 if mode == "float32" else torch.float64)
if mode == "nan" and rank == world - 1:
    space.features[30, 0] = float("nan")
space = shard(space)
try:
    states = []
    for name, batches in (("full", full_batch(31, 8)), ("mini", batch_order(31, 4, 8, 1))):
        for step, state in enumerate(simulate(space, AdamW(0.05), batches, unembedding=space.zeros(),
                                              max_grad_norm=0.5)):
            if mode == "dies" and rank == world - 1 and step == 3:
                os._exit(7)
        states.append(state)
    margins = space.margins(states[0])
    if rank == 0:
        write_tensors(folder / "result.safetensors", {"states": torch.stack(states), "margins": margins})
except (InputError, StatedFailure) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(1)
dist.destroy_process_group()
"""
ROOT = Path(__file__).parents[2]


def launch(world: int, folder: Path, mode: str) -> list[tuple[int, str]]:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(world), str(folder), mode],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [worker.communicate(timeout=100) for worker in workers]
    return [(worker.returncode, out or err) for worker, (out, err) in zip(workers, outputs, strict=True)]


@pytest.mark.parametrize(("world", "mode"), [(2, "float64"), (3, "float64"), (3, "float32")])
def test_processes_compute_what_one_does(tmp_path: Path, world: int, mode: str) -> None:
    assert [code for code, _ in launch(world, tmp_path, mode)] == [0] * world
    got = load_file(tmp_path / "result.safetensors")
    dtype = getattr(torch, mode)
    space = random_space(31, 17, 4, 0.5, 0, dtype)
    alone = torch.stack(
        [
            list(simulate(space, AdamW(0.05), batches, unembedding=space.zeros(), max_grad_norm=0.5))[-1]
            for batches in (full_batch(31, 8), batch_order(31, 4, 8, 1))
        ]
    )
    assert error(got["states"], alone) <= TOLERANCE[dtype].run
    assert error(got["margins"], space.margins(alone[0])) <= TOLERANCE[dtype].run


def test_bad_features_in_one_process_stop_all_of_them(tmp_path: Path) -> None:
    results = launch(2, tmp_path, "nan")
    assert [code for code, _ in results] == [1, 1]
    assert all(
        "InputError: process 1, rows from 15: the features of pair 15 are not finite" in out for _, out in results
    )
    assert not (tmp_path / "result.safetensors").exists()


def test_a_process_that_dies_stops_the_others_with_a_reason(tmp_path: Path) -> None:
    (code, out), (dead, _) = launch(2, tmp_path, "dies")
    assert (code, dead) == (1, 7)
    assert out.startswith("StatedFailure: another process of this run stopped")
    assert len(out.splitlines()) == 1
    assert not (tmp_path / "result.safetensors").exists()
