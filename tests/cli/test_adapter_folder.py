"""An adapter's folder as --model, with responses of many tokens: every command begins where its run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.helpers import run, write_rows
from tests.cli.test_decompose import SETTINGS, conversations, read
from tests.models.test_adapters import adapted
from tests.tiny import tiny_model, tiny_tokenizer

Words = tuple[object, ...]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Words:
    folder = tmp_path_factory.mktemp("adapter")
    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    model = adapted(trained=True)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "lora")
    pairs = write_rows(folder / "talk.jsonl", conversations())
    return pairs, "--model", folder / "lora", "--holdout", 0.3, *SETTINGS


def test_forecast_train_and_attribute_agree(inputs: Words, tmp_path: Path) -> None:
    names = ("forecast", "train")
    for name in names:
        outcome = run(name, *inputs, "--train", "head", "--eval_steps", 4, "--quiet", "--out", tmp_path / name)
        assert outcome.status == 0, outcome
    forecast, trained = (load_file(tmp_path / name / "margins.safetensors")["heldout"].double() for name in names)
    assert float(forecast[0].abs().max()) > 0.05
    assert float((forecast - trained).abs().max()) <= 1e-3 * float(trained.abs().max())
    # What a run keeps of its positions has where they started, too.
    for name in names:
        assert run("attribute", tmp_path / name, "--quiet", "--out", tmp_path / f"{name}-a").status == 0
        row = read(tmp_path / f"{name}-a" / "attribution.jsonl")[0]
        assert row["margin"] == pytest.approx(float(forecast[-1].mean()), rel=1e-3)
        assert row["start"] == pytest.approx(float(forecast[0].mean()), rel=1e-3)
        assert row["start"] + sum(row["contributions"]) == pytest.approx(row["margin"], abs=1e-5)


def test_decompose_shows_rewards_that_are_there_before_training(inputs: Words, tmp_path: Path) -> None:
    outcome = run("decompose", *inputs, "--pair", "talk:2", "--out", tmp_path)
    assert outcome.status == 0 and "Before training the reward of the chosen response is " in outcome.out
    results = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["results"]
    for side, tokens in results["tokens"].items():
        assert sum(token["start"] for token in tokens) == pytest.approx(results["start"][side], abs=1e-5)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "reward before training" in page and "Before training the reward" in page


def test_a_fitted_forecast_says_that_no_run_like_it_is_known(inputs: Words, tmp_path: Path) -> None:
    outcome = run("forecast", *inputs, "--train", "lora", "--out", tmp_path)
    assert outcome.status == 0, outcome
    assert "Untested: held-out margins start at " in outcome.out and "with fresh adapters" in outcome.out
    begun = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["results"]["begun"]
    first = load_file(tmp_path / "margins.safetensors")["heldout"][0].double()
    assert begun["mean"] == pytest.approx(float(first.mean()), abs=1e-5) and begun["trains_on"]
