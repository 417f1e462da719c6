"""`margincast train --train lora`, and what `--report_to` is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.integrations import integration_utils

from tests.cli.helpers import run

SETTINGS = ("--max_steps", 6, "--eval_steps", 2, "--per_device_train_batch_size", 8, "--learning_rate", 1e-2)


def test_the_adapter_that_is_saved_gives_the_recorded_margins(
    model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    """Loaded into the base model by peft, it moves log-probabilities as the run says; the base model is as it was."""
    from peft import PeftModel

    from margincast.data import load_pairs
    from margincast.models import load_model
    from margincast.passes.evaluate import Evaluator
    from margincast.passes.tokenize import encode

    out, lora = tmp_path / "out", ("--train", "lora", "--lora_r", 4, "--lora_target_modules", "q_proj,down_proj")
    before = load_file(model_folder / "model.safetensors")
    done = run("train", data_folder, "--model", model_folder, *lora, *SETTINGS, "--beta", 0.5, "--out", out)
    assert done.status == 0, done.err
    saved = load_file(out / "model" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved} == {"q_proj", "down_proj"}
    assert all(min(matrix.shape) == 4 for matrix in saved.values())

    base = load_model(str(model_folder))
    after = base.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pairs = load_pairs(str(data_folder))
    _, heldout = pairs.split(0.1, 1234)
    evaluator = Evaluator(encode(heldout, base.tokenizer).rows, True, frozen_backbone=False)
    chosen, rejected = evaluator(AutoModelForCausalLM.from_pretrained(model_folder))
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), out / "model")
    chosen_after, rejected_after = evaluator(tuned)
    expected = 0.5 * ((chosen_after - chosen) - (rejected_after - rejected))
    margins = load_file(out / "margins.safetensors")["heldout"]
    assert bool((margins[0] == 0.0).all())
    assert float(expected.abs().max()) > 0.01
    torch.testing.assert_close(margins[-1].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "words, told",
    [
        (("--lora_r", 4), "lora_r belongs to train lora"),
        (("--train", "lora", "--lora_target_modules", "no_such"), "cannot have the adapter"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    words: tuple[object, ...], told: str, model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    done = run("train", data_folder, "--model", model_folder, *SETTINGS, *words, "--out", tmp_path / "out")
    assert done.status == 2
    assert told in done.err


def test_a_tracker_is_told_the_loss_of_every_step_and_held_out_metrics(
    model_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, dict[str, Any]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            told.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    out = tmp_path / "out"
    words = (data_folder, "--model", model_folder, *SETTINGS, "--report_to", "tracker", "--out", out)
    assert run("train", *words).status == 0
    trained = {step: logs for step, logs in told if "rewards/margins" in logs}
    assert set(trained) == {1, 2, 3, 4, 5, 6}
    assert all("loss" in logs and "learning_rate" in logs for logs in trained.values())
    heldout = {step: logs for step, logs in told if "eval_rewards/margins" in logs}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4, 6] == list(heldout)
    for row in rows:
        kept = {name: value for name, value in row.items() if name.startswith("eval_")}
        assert {name: heldout[row["step"]][name] for name in kept} == pytest.approx(kept)


def test_a_tracker_that_is_not_installed_is_named_at_once(
    model_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    words = (data_folder, "--model", model_folder, "--report_to", "wandb", "--out", tmp_path / "out")
    done = run("train", *words)
    assert done.status == 2
    assert "pip install wandb" in done.err


@pytest.fixture
def adapter_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A trained adapter on top of the tiny model, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.5)
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_forecast_and_run_of_a_trained_adapter_begin_where_it_is(
    adapter_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    words = (data_folder, "--model", adapter_folder, *SETTINGS, "--beta", 0.5)
    head, real = tmp_path / "forecast", tmp_path / "train"
    for command, out in (("forecast", head), ("train", real)):
        done = run(command, *words, "--train", "head", "--out", out)
        assert done.status == 0, done.err
    expected, trained = (load_file(out / "margins.safetensors")["heldout"] for out in (head, real))
    assert float(expected[0].abs().max()) > 0.01
    torch.testing.assert_close(trained.double(), expected.double(), rtol=1e-3, atol=1e-3)
    assert run("compare", head, real, "--out", tmp_path / "compared").status == 0
    assert run("attribute", head, "--out", tmp_path / "attributed").status == 0
    said = json.loads((tmp_path / "attributed" / "summary.json").read_text())["results"]
    assert said["sum_error"] < 1e-8
