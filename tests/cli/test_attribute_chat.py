"""`margincast attribute` of conversations with responses of many tokens: the same files as for single tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.cli.helpers import run, write_rows
from tests.cli.test_bad_input import refused
from tests.tiny import CHAT_TEMPLATE

SETTINGS = ("--max_steps", 4, "--eval_steps", 2, "--optimizer", "adamw", "--learning_rate", 1e-2, "--holdout", 0.25)
COMMON = ("--per_device_train_batch_size", 6, "--concept_column", "concept", "--quiet")


def conversations() -> list[dict[str, Any]]:
    words = ["tea", "rain", "maps", "keys", "bread", "songs"]
    rows = []
    for k in range(24):
        turns = [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hello!"), ("user", f"{words[k % 6]} {k}?")]
        rows.append(
            {
                "prompt": [{"role": role, "content": content} for role, content in turns],
                "chosen": [{"role": "assistant", "content": f"take {words[(k + 1) % 6]} home" + " now" * (k % 3)}],
                "rejected": [{"role": "assistant", "content": f"leave {words[(k + 2) % 6]}"}],
                "concept": f"kind-{k % 2}",
            }
        )
    return rows


@pytest.fixture(scope="module")
def chat_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("model") / "chat")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def forecast(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data are gone."""
    folder = tmp_path_factory.mktemp("chat")
    data = write_rows(folder / "talk.jsonl", conversations())
    outcome = run(
        "forecast", data, "--model", chat_model, "--train", "head", *SETTINGS, *COMMON, "--out", folder / "forecast"
    )
    assert outcome.status == 0, outcome
    return folder / "forecast"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_forecast_is_attributed_and_cleaned(forecast: Path, cache: Path) -> None:
    head = forecast / "features.head.safetensors"
    assert any(head.samefile(other) for other in (cache / "heads").iterdir())  # one for all runs
    pair = lines(forecast / "pairs.jsonl")[-1]["id"]
    export = ("--export", forecast.parent / "cleaned.jsonl", "--share", 0.2)
    (forecast.parent / "talk.jsonl").rename(forecast.parent / "gone.jsonl")
    outcome = run("attribute", forecast, "--pair", pair, *export, "--top", 3, "--out", forecast.parent / "out")
    assert outcome.status == 0, outcome
    for said in (
        "the chosen response is the longer one",
        "kind-1",
        "cleaned, predicted",
        "adds to the mean held-out margin",
    ):
        assert said.lower() in outcome.out.lower()
    issues, parts = (lines(forecast.parent / "out" / f"{name}.jsonl") for name in ("issues", "attribution"))
    assert {"mislabel_score", "harm_score", "length_difference", "reference_log_ratio"} <= set(issues[0])
    assert sorted(row["id"] for row in parts[:-1]) == ["kind-0", "kind-1"]
    assert parts[-1]["id"] == "all heldout pairs"
    for row in parts:
        assert len(row["contributions"]) == len(issues)
        assert abs(row["residual"]) < 1e-4 * abs(row["margin"])
        assert sum(row["contributions"]) + row["start"] + row["residual"] == pytest.approx(row["margin"])
    results = json.loads((forecast.parent / "out" / "summary.json").read_text())["results"]
    margins = load_file(forecast / "margins.safetensors")["heldout"][-1]
    assert parts[-1]["margin"] == pytest.approx(float(margins.mean()), rel=1e-3)
    assert results["pair"]["id"] == pair
    assert results["interaction"]["without_shared"] is None
    cleaned = lines(forecast.parent / "cleaned.jsonl")
    assert len(cleaned) == len(issues) - len(results["exported"]["changed"])
    assert [message["role"] for message in cleaned[0]["prompt"]] == ["system", "user", "assistant", "user"]
    assert "Who helps and who harms whom" in (forecast.parent / "out" / "report.html").read_text()


def test_a_training_run_keeps_its_positions_too(chat_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "talk.jsonl", conversations())
    words = ("--train", "head", *SETTINGS, *COMMON[:-1], "--no_save_model", "--out", tmp_path / "run")
    outcome = run("train", data, "--model", chat_model, *words)
    assert outcome.status == 0, outcome
    assert "features of all response positions are kept in the cache: 0 MB" in outcome.out
    assert run("attribute", tmp_path / "run", "--out", tmp_path / "out", "--quiet").status == 0
    assert len(lines(tmp_path / "out" / "issues.jsonl")) == 18


def test_a_fitted_forecast_is_attributed_through_the_head_from_data_and_model_again(
    forecast: Path, chat_model: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "talk.jsonl", conversations())
    words = ("--rehearsal", 0.5, *SETTINGS, *COMMON, "--out", tmp_path / "run")
    assert run("forecast", data, "--model", chat_model, *words).status == 0
    outcome = run("attribute", tmp_path / "run", "--out", tmp_path / "out")
    assert outcome.status == 0, outcome
    assert "keeps no features of its response positions; they are taken from" in outcome.out
    assert "with the settings of a run that trains all weights" in outcome.out
    assert run("attribute", forecast, "--out", tmp_path / "head", "--quiet").status == 0
    ours, heads = (lines(tmp_path / name / "attribution.jsonl") for name in ("out", "head"))
    assert [row["contributions"] for row in ours] == [row["contributions"] for row in heads]

    write_rows(data, conversations()[1:])
    refused(run("attribute", tmp_path / "run", "--out", tmp_path / "late"), "has other pairs than when", "run it again")
    data.unlink()
    refused(run("attribute", tmp_path / "run", "--out", tmp_path / "late"), "no such file or folder")
    assert not (tmp_path / "late").exists()
