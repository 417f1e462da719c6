"""Losses and optimizers with their settings go through forecast, training, saved runs and their loading alike."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from margincast.recipe.losses import LOSSES, get_loss
from margincast.runs.load import load_run
from margincast.runs.metrics import metric_rows
from tests.cli.helpers import run

Words = tuple[object, ...]

# The hidden states of two passes over the model differ by float32's rounding.
ROUNDING = 1e-5
STEPS: Words = ("--max_steps", 6, "--eval_steps", 3, "--per_device_train_batch_size", 10)
CASES: dict[str, Words] = {
    "hinge": (
        *("--loss_type", "hinge", "--beta", 0.5, "--optimizer", "sgd", "--learning_rate", 0.1, "--momentum", 0.8),
        *("--nesterov", "--weight_decay", 0.01, "--gradient_accumulation_steps", 4),
    ),
    "ipo": (
        *("--loss_type", "ipo", "--beta", 0.1, "--learning_rate", 0.05, "--adam_beta1", 0.8, "--adam_beta2", 0.95),
        *("--adam_epsilon", 1e-5, "--lr_scheduler_type", "linear", "--warmup_steps", 2),
    ),
    "robust": (
        *("--loss_type", "robust", "--label_smoothing", 0.1, "--beta", 0.5, "--optimizer", "gd"),
        *("--learning_rate", 0.1, "--momentum", 0.5),
    ),
}


@pytest.fixture(scope="module")
def inputs(model_folder: Path, data_folder: Path) -> Words:
    return data_folder, "--model", model_folder


@pytest.mark.parametrize("name", CASES)
def test_the_forecast_is_what_training_the_head_does(name: str, inputs: Words, tmp_path: Path) -> None:
    for command, more in (("forecast", ("--train", "head")), ("train", ("--train", "head", "--no_save_model"))):
        outcome = run(command, *inputs, *more, *STEPS, *CASES[name], "--out", tmp_path / command)
        assert (outcome.status, outcome.err) == (0, "")
    foreseen, trained = (load_file(tmp_path / command / "margins.safetensors") for command in ("forecast", "train"))
    for split in ("train", "heldout"):
        size = float(trained[split].abs().max())
        assert size > 0.01  # far above what rounding makes
        assert float((foreseen[split] - trained[split]).abs().max()) <= ROUNDING * size


@pytest.mark.parametrize("name", CASES)
def test_a_saved_run_knows_its_loss(name: str, inputs: Words, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("forecast", *inputs, *STEPS, *CASES[name], "--train", "head", "--out", out).status == 0
    loaded = load_run(out)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert metric_rows(loaded.trajectory) == written
    settings = yaml.safe_load((out / "config.yaml").read_text())
    loss = get_loss(name, settings["beta"], label_smoothing=settings["label_smoothing"])
    last = loaded.trajectory.heldout.margins[-1].double()
    assert written[-1]["eval_loss"] == pytest.approx(float(loss.value(last).mean()), rel=1e-12)
    with safe_open(out / "margins.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["loss_type"] == name
    assert json.loads(metadata["loss_parameters"]) == dict(loss.parameters)


def test_training_with_simpo_records_margins_without_the_reference(inputs: Words, tmp_path: Path) -> None:
    out = tmp_path / "simpo"
    words = ("--train", "head", "--no_save_model", "--loss_type", "simpo", "--simpo_gamma", 1.0, "--beta", 2.0)
    outcome = run("train", *inputs, *words, *STEPS, "--learning_rate", 0.01, "--out", out)
    assert (outcome.status, outcome.err) == (0, "")
    tensors = load_file(out / "margins.safetensors")
    features = load_file(out / "features.safetensors")
    reference = features["reference_chosen"] - features["reference_rejected"]  # training pairs, then held-out ones
    start = 2.0 * reference[-tensors["heldout"].shape[1] :]
    assert float(start.abs().max()) > 0.1
    torch.testing.assert_close(tensors["heldout"][0].float(), start.float(), rtol=1e-4, atol=1e-4)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    loss = get_loss("simpo", without_reference=True, simpo_gamma=1.0)
    assert written[0]["loss"] == pytest.approx(float(loss.value(tensors["train"][0].double()).mean()), rel=1e-12)
    assert written[-1]["loss"] < written[0]["loss"]
    assert metric_rows(load_run(out).trajectory) == written


def test_a_forecast_of_simpo_is_what_training_the_head_gives(inputs: Words, tmp_path: Path) -> None:
    words = (*inputs, "--loss_type", "simpo", "--beta", 2.0, *STEPS, "--learning_rate", 0.01)
    assert run("forecast", *words, "--train", "head", "--out", tmp_path / "forecast").status == 0
    assert run("train", *words, "--train", "head", "--no_save_model", "--out", tmp_path / "real").status == 0
    ours, real = (load_file(tmp_path / name / "margins.safetensors") for name in ("forecast", "real"))
    for name in ("train", "heldout", "train_chosen", "heldout_chosen"):
        if name in ours:
            gap = (ours[name].double() - real[name].double()).abs().max()
            assert float(gap) <= 1e-4 * float(real[name].abs().max())
    assert float((ours["heldout"][-1] - ours["heldout"][0]).abs().max()) > 0.01


@pytest.mark.parametrize("command", ["forecast", "train"])
@pytest.mark.parametrize(
    "words, message",
    [
        (("--loss_type", "nca_pair"), "'nca_pair' is not a function of the margin"),
        (("--loss_type", "dpo"), "did you mean cdpo? use one of: cdpo, discopop"),
        (("--label_smoothing", 0.1), "cdpo"),
        (("--loss_type", "exo_pair"), "label_smoothing above 0"),
        (("--optimizer", "adam", "--weight_decay", 0.1), "belongs to adamw"),
        (("--momentum", 0.9), "momentum belongs to gd, sgd"),
        (("--optimizer", "sgd", "--nesterov"), "nesterov needs a momentum"),
        (("--optimizer", "sgd", "--adam_beta1", 0.5), "adam_beta1 belongs to adam, adamw"),
        (("--adam_beta2", 1.0), r"adam_beta2 must lie in [0, 1)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(
    command: str, words: Words, message: str, inputs: Words, tmp_path: Path
) -> None:
    outcome = run(command, *inputs, *words, "--out", tmp_path / "out")
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "out" / "features.safetensors").exists()


def test_help_lists_the_losses() -> None:
    text = " ".join(run("forecast", "--help").out.split())
    for name in LOSSES.names:
        assert name in text
