"""`margincast attribute`: what it writes, that it adds up, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.helpers import run
from tests.cli.test_bad_input import refused

SETTINGS = ("--max_steps", 6, "--eval_steps", 3, "--optimizer", "gd", "--learning_rate", 100, "--holdout", 0.25)


@pytest.fixture(scope="module")
def forecast(model_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "forecast"
    outcome = run(
        "forecast", data_folder, "--model", model_folder, "--train", "head", *SETTINGS, "--out", folder, "--quiet"
    )
    assert outcome.status == 0, outcome
    return folder


@pytest.fixture(scope="module")
def attributed(forecast: Path) -> Path:
    out = forecast.parent / "attribute"
    outcome = run("attribute", forecast, "--out", out, "--export", forecast.parent / "cleaned.jsonl", "--share", 0.1)
    assert outcome.status == 0, outcome
    assert "What is attributed: training the unembedding on a frozen backbone" in outcome.out
    assert "cleaned.changes.jsonl" in outcome.out
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_contract_of_issues(attributed: Path, forecast: Path) -> None:
    rows = lines(attributed / "issues.jsonl")
    pairs = [row for row in lines(forecast / "pairs.jsonl") if row["split"] == "train"]
    assert [(row["id"], row["source"], row["line"]) for row in rows] == [
        (pair["id"], pair["source"], pair["line"]) for pair in pairs
    ]
    for row in rows:
        for kind in ("mislabel", "duplicate", "conflict", "harm", "unlearnable"):
            assert 0 <= row[f"{kind}_score"] <= 1
            assert isinstance(row[f"is_{kind}_issue"], bool)


def test_contributions_add_up_to_the_margins_of_the_run(attributed: Path, forecast: Path) -> None:
    from safetensors.torch import load_file

    margins = load_file(forecast / "margins.safetensors")["heldout"][-1].tolist()
    for row, margin in zip(lines(attributed / "attribution.jsonl"), margins, strict=True):
        assert row["margin"] == pytest.approx(margin, abs=1e-9)
        assert row["positive"] + row["negative"] == pytest.approx(margin, abs=1e-9)
        assert sum(top["contribution"] for top in row["top"]) + row["rest"] == pytest.approx(margin, abs=1e-9)
    results = json.loads((attributed / "summary.json").read_text())["results"]
    effects = [row["heldout_effect"] for row in lines(attributed / "issues.jsonl")]
    assert sum(effects) == pytest.approx(sum(margins) / len(margins), abs=1e-9)
    interaction = results["interaction"]
    assert interaction["steps"] == [0, 3, 6]
    counts = [
        sum(row["concept"] == name for row in lines(attributed / "attribution.jsonl"))
        for name in interaction["heldout"]
    ]
    columns = [sum(row[b] for row in interaction["raw"][-1]) for b in range(len(counts))]
    mean = sum(count * column for count, column in zip(counts, columns, strict=True)) / sum(counts)
    assert mean == pytest.approx(sum(margins) / len(margins), abs=1e-9)


def test_the_export_is_run_again(attributed: Path, forecast: Path) -> None:
    """The counterfactual is of the data that the export holds."""
    results = json.loads((attributed / "summary.json").read_text())["results"]
    cleaned, changes = (lines(forecast.parent / f"cleaned{kind}.jsonl") for kind in ("", ".changes"))
    assert len(cleaned) + len(changes) == len(lines(attributed / "issues.jsonl"))
    assert [change["id"] for change in changes] == results["exported"]["changed"]
    assert len(lines(forecast.parent / "cleaned.heldout.jsonl")) == len(lines(attributed / "attribution.jsonl"))
    check = results["counterfactual"]
    assert check["now"]["margin"] == pytest.approx(results["heldout"]["margin"], rel=1e-9)
    assert check["rerun"]["margin"] == pytest.approx(margin_without(forecast, {change["id"] for change in changes}))


def margin_without(folder: Path, gone: set[str]) -> float:
    """Mean held-out margin of the run in `folder` without some training pairs: full batches, one step at a time."""
    from margincast.features.kept import kept_features

    features = kept_features(folder)
    spaces = []
    for part in (features.train, features.heldout):
        rows = [k for k, pair in enumerate(part.pairs) if pair.id not in gone]
        yes = torch.tensor([1.0 if part.chosen_ids[k] == (int(features.tokens[1]),) else -1.0 for k in rows])
        spaces.append(yes.double()[:, None] * part.hidden[rows].double())
    state = torch.zeros(spaces[0].shape[1], dtype=torch.float64)  # W of the second token less that of the first, halved
    for _ in range(6):
        pull = torch.sigmoid(-0.01 * 2 * spaces[0] @ state)
        gradient = 0.01 * (pull[:, None] * spaces[0]).mean(dim=0)
        norm = 2**0.5 * float(gradient.norm())
        state += 100 * gradient * min(1.0, 1.0 / (norm + 1e-6))
    return float((0.01 * 2 * spaces[1] @ state).mean())


def test_the_page_and_its_figures(attributed: Path) -> None:
    page = (attributed / "report.html").read_text()
    assert "Who helps and who harms whom" in page
    assert "Suspects" in page
    for name in ("interaction", "interaction-over-time", "suspects"):
        assert (attributed / "figures" / f"{name}.png").is_file()


def test_one_pair(forecast: Path) -> None:
    name = lines(forecast / "pairs.jsonl")[-1]["id"]
    outcome = run("attribute", forecast, "--out", "one", "--pair", name, "--top", 3, "--json")
    pair = json.loads(outcome.out)["results"]["pair"]
    assert pair["id"] == name
    assert len(pair["top"]) == 3
    assert pair["positive"] + pair["negative"] == pytest.approx(pair["margin"])


def test_a_training_run_is_attributed_as_its_forecast(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    """Although it recorded few training pairs, suspects are among all of them."""
    words = ("--model", model_folder, *SETTINGS, "--train", "all", "--record_train", 3, "--no_save_model", "--quiet")
    words = tuple(word if word != 100 else 1e-4 for word in words)
    assert run("train", data_folder, *words, "--out", tmp_path / "run").status == 0
    outcome = run("attribute", tmp_path / "run", "--out", tmp_path / "out")
    assert outcome.status == 0, outcome
    assert "a run that trained all weights" in outcome.out
    assert len(lines(tmp_path / "out" / "issues.jsonl")) == 54


def test_what_is_refused(forecast: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    refused(run("attribute", tmp_path / "nowhere", *out), "nowhere does not exist")
    refused(run("attribute", tmp_path, *out), "not a finished run")
    refused(run("attribute", forecast, *out, "--pair", "nobody"), "--pair nobody", "ids are like")
    refused(run("attribute", forecast, *out, "--export", "cleaned.csv"), "cleaned.csv", ".jsonl")
    refused(run("attribute", forecast, *out, "--threshold", 0.3), "--export")
    refused(run("attribute", forecast, *out, "--export", "c.jsonl", "--issues", "typos"), "got typos")
    refused(
        run("attribute", forecast, *out, "--export", "c.jsonl", "--action", "flip", "--issues", "duplicate"), "mend"
    )
    lame = tmp_path / "lame"
    shutil.copytree(forecast, lame)
    (lame / "features.head.safetensors").unlink()
    refused(run("attribute", lame, *out), "holds no features", "again with this version")
    shutil.copy(forecast / "features.head.safetensors", lame)
    (lame / "features.safetensors").unlink()  # a link to the cache, whose file must stay whole
    (lame / "features.safetensors").write_bytes(b"half")
    refused(run("attribute", lame, *out), "features.safetensors is not the file")
    shutil.rmtree(lame)
    shutil.copytree(forecast, lame)
    pairs = lines(forecast / "features.pairs.jsonl")
    pairs[0]["id"], pairs[1]["id"] = pairs[1]["id"], pairs[0]["id"]
    (lame / "features.pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    refused(run("attribute", lame, *out), "features.pairs.jsonl changed after the run wrote it")
    refused(run("report", lame), "features.pairs.jsonl changed after the run wrote it")
    assert not (tmp_path / "out").exists()
