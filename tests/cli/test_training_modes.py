"""Do checkpointed activations, bfloat16 and a killed process change what training gives?"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.helpers import run, run_program

Words = tuple[object, ...]
STEPS = 24
SETTINGS = (
    "--max_steps", STEPS, "--eval_steps", 3, "--per_device_train_batch_size", 4, "--learning_rate", 1e-3,
    "--beta", 0.5, "--lr_scheduler_type", "cosine", "--warmup_steps", 3, "--seed", 5,
)  # fmt: skip


def margins(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "margins.safetensors")


@pytest.fixture(scope="module")
def inputs(model_folder: Path, data_folder: Path) -> Words:
    return data_folder, "--model", model_folder


@pytest.fixture(scope="module")
def plain(inputs: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    assert run("train", *inputs, *SETTINGS, "--out", out).status == 0
    return out


def test_gradient_checkpointing_changes_nothing_but_memory(inputs: Words, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", *inputs, *SETTINGS, "--gradient_checkpointing", "--out", out).status == 0
    largest = float(margins(plain)["heldout"].abs().max())
    assert largest > 0.1
    torch.testing.assert_close(margins(out)["heldout"], margins(plain)["heldout"], rtol=0.0, atol=1e-4 * largest)


def test_bfloat16_is_near_float32(inputs: Words, plain: Path, tmp_path: Path) -> None:
    """Eight bits of significand: log-probabilities of a few units are off by hundredths, margins by beta times that."""
    out = tmp_path / "out"
    assert run("train", *inputs, *SETTINGS, "--bf16", "--out", out).status == 0
    ours, exact = margins(out)["heldout"], margins(plain)["heldout"]
    assert bool((ours[0] == 0.0).all())
    assert not torch.equal(ours, exact)
    correlation = torch.corrcoef(torch.stack([ours[-1], exact[-1]]))[0, 1]
    assert float(correlation) > 0.95


@pytest.mark.parametrize("what, seed", [("all", 0), ("head", 1), ("lora", 2)])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    what: str, seed: int, inputs: Words, tmp_path: Path
) -> None:
    """SIGKILL at a random moment after a random step: the second start goes on, and every bit is the same."""
    draw = random.Random(seed)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = [str(word) for word in ("train", *inputs, "--train", what, *SETTINGS)]
    command = [sys.executable, "-m", "margincast.cli.main", *words, "--out", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    seen = killed / "state" / f"step-{3 * draw.randrange(1, STEPS // 3 - 2):07d}.safetensors"
    while not seen.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    time.sleep(draw.uniform(0.0, 0.05))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "summary.json").exists()

    for out in (killed, whole):
        assert run_program(*words, "--out", out).status == 0
    weights = "adapter_model" if what == "lora" else "model"
    for name in ("margins.safetensors", f"model/{weights}.safetensors"):
        ours, theirs = load_file(killed / name), load_file(whole / name)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
