"""Does the launch that examples/paper gives work, weights sharded by FSDP? On two CPU processes, with a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.cli.helpers import run
from tests.conftest import REPOSITORY

TRAIN = ("train", "traits", "--model", "tiny", "--max_steps", 2, "--eval_steps", 1, "--learning_rate", 1e-3,
         "--no_save_model")  # fmt: skip


def test_sharded_weights_train_as_whole_ones(tmp_path: Path) -> None:
    config = REPOSITORY / "examples" / "paper" / "fsdp.yaml"
    launch = ("--config_file", config, "--num_processes", 2, "--mixed_precision", "no", "--main_process_port", 0)
    script = Path(__file__).with_name("sharded.py")
    words = ("-m", "accelerate.commands.launch", *launch, script, *TRAIN)
    command = [sys.executable, *map(str, words), "--per_device_train_batch_size", "4", "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = run(*TRAIN, "--per_device_train_batch_size", 8, "--out", tmp_path / "one")
    assert alone.status == 0, alone.err
    two, one = (load_file(tmp_path / name / "margins.safetensors") for name in ("two", "one"))
    for split in ("train", "heldout"):
        largest = float(one[split].abs().max())
        assert largest > 0.01
        torch.testing.assert_close(two[split], one[split], rtol=0.0, atol=1e-4 * largest)
