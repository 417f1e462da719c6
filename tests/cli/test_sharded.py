"""Does the launch that examples/paper gives work, weights sharded by FSDP? On two CPU processes, with a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from margincast.errors import InputError
from margincast.recipe.recipe import Recipe
from margincast.training.prepare import refuse_sharded
from tests.cli.helpers import run
from tests.conftest import REPOSITORY
from tests.tiny import tiny_model

TRAIN = ("train", "traits", "--model", "tiny", "--max_steps", 2, "--eval_steps", 1, "--learning_rate", 1e-3)
WEIGHTS = {"all": "model.safetensors", "head": "model.safetensors", "lora": "adapter_model.safetensors"}


def sharded(*words: object) -> subprocess.CompletedProcess[str]:
    """`margincast WORDS` over two processes that share the weights."""
    config = REPOSITORY / "examples" / "paper" / "fsdp.yaml"
    launch = ("--config_file", config, "--num_processes", 2, "--mixed_precision", "no", "--main_process_port", 0)
    script = Path(__file__).with_name("sharded.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, (*launch, script, *words))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("what", WEIGHTS)
def test_sharded_weights_train_and_are_saved_as_whole_ones(what: str, tmp_path: Path) -> None:
    train = (*TRAIN, "--train", what, *(("--lora_dropout", 0) if what == "lora" else ()))
    # Packs so small that the two processes would need different numbers of them.
    done = sharded(*train, "--per_device_train_batch_size", 4, "--pack_tokens", 60, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[:2000]
    alone = run(*train, "--per_device_train_batch_size", 8, "--out", tmp_path / "one")
    assert alone.status == 0, alone.err
    two, one = (load_file(tmp_path / name / "margins.safetensors") for name in ("two", "one"))
    for split in ("train", "heldout"):
        largest = float(one[split].abs().max())
        assert largest > 5e-4
        torch.testing.assert_close(two[split], one[split], rtol=0.0, atol=1e-4 * largest)
    there, here = (load_file(tmp_path / name / "model" / WEIGHTS[what]) for name in ("two", "one"))
    assert set(there) == set(here)
    for name, weight in here.items():  # that AdamW moved by about 2e-3
        torch.testing.assert_close(there[name], weight, rtol=0.0, atol=5e-5, msg=name)


@pytest.mark.parametrize(
    "changes, dtype, said",
    [
        ({"gradient_accumulation_steps": 2}, torch.float32, "gradient_accumulation_steps 2 does not work where FSDP"),
        ({"torch_compile": True}, torch.float32, "torch_compile was not tried where FSDP shards"),
        ({}, torch.bfloat16, "weights in bfloat16 are trained by copies in float32, which FSDP does not shard"),
    ],
)
def test_what_sharded_weights_cannot_have_is_refused(changes: dict[str, Any], dtype: torch.dtype, said: str) -> None:
    with pytest.raises(InputError, match=said):
        refuse_sharded(Recipe(**changes), tiny_model().to(dtype))
    refuse_sharded(Recipe(), tiny_model())
