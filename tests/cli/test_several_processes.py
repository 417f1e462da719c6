"""Does `margincast train`, started as several processes, give what one process gives? And do adapters train?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.helpers import Outcome, run

SETTINGS = (
    "--max_steps", 12, "--eval_steps", 4, "--learning_rate", 1e-3, "--beta", 0.5, "--lr_scheduler_type", "cosine",
    "--warmup_steps", 2, "--seed", 5, "--record_train", 10,
)  # fmt: skip
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
}


def launch(launcher: str, *words: object) -> Outcome:
    """Run `margincast WORDS` as two CPU processes."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "margincast", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr)


def losses(out: Path) -> torch.Tensor:
    return torch.tensor([json.loads(line)["loss"] for line in (out / "train_log.jsonl").read_text().splitlines()])


def rewards(out: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    return torch.tensor([[row["rewards/margins"], row["rewards/chosen"], row["logps/chosen"]] for row in rows])


@pytest.mark.parametrize(
    "launcher, what, more",
    [
        ("torchrun", "all", ("--gradient_accumulation_steps", 2)),
        ("accelerate", "head", ()),
        ("torchrun", "lora", ("--lora_dropout", 0, "--gradient_checkpointing")),
    ],
)
def test_two_processes_give_the_loss_curve_of_one(
    launcher: str, what: str, more: tuple[object, ...], model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    """Batches of 10 of 66 pairs: the last of an epoch has 6, and an epoch ends within the run."""
    words = ("train", data_folder, "--model", model_folder, "--train", what, *SETTINGS, *more)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(*words, "--per_device_train_batch_size", 10, "--out", one)
    assert alone.status == 0, alone.err
    both = launch(launcher, *words, "--per_device_train_batch_size", 5, "--out", two)
    assert both.status == 0, both.err
    assert both.out.count("Results:") == 1
    assert json.loads((two / "summary.json").read_text())["config"]["processes"] == 2
    assert len(losses(one)) == 12
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(rewards(two), rewards(one), rtol=1e-4, atol=1e-4)
    ours, theirs = (load_file(out / "margins.safetensors") for out in (two, one))
    for split in ("train", "heldout"):
        largest = float(theirs[split].abs().max())
        assert largest > 0.02
        torch.testing.assert_close(ours[split], theirs[split], rtol=0.0, atol=1e-3 * largest)


def test_bad_input_is_said_once_and_other_commands_refuse_a_launcher(
    model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bad = launch("torchrun", "train", tmp_path / "none.jsonl", "--model", model_folder, "--out", out)
    assert bad.err.count("margincast: error:") == 1
    assert not out.exists()
    inspected = launch("torchrun", "inspect", data_folder, "--model", model_folder, "--out", tmp_path / "inspect")
    assert inspected.status == 0, inspected.err
    assert (tmp_path / "inspect" / "summary.json").is_file()
    assert inspected.out.count("Results:") == 1
