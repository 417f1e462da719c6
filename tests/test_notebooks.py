"""Notebooks run from top to bottom. Their cells are plain Python, so no notebook server is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "examples" / "notebooks"


def cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(name: str) -> dict[str, Any]:
    """The variables of the notebook `name` after its last cell."""
    path = FOLDER / f"{name}.ipynb"
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells(path), start=1):
        exec(compile(source, f"{path.name}, cell {number}", "exec"), space)
    return space


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No window, and nothing kept from earlier runs."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("margincast.features.extract.default_cache_dir", lambda: tmp_path)
    monkeypatch.setattr("margincast.models.load.default_cache_dir", lambda: tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_forecast_your_dpo_run(capsys: pytest.CaptureFixture[str]) -> None:
    space = run("forecast-your-dpo-run")
    # The forecast reads features in float64, training computes them in float32.
    assert space["agreement"].max_abs_difference < 1e-5 * space["agreement"].largest_margin
    assert "without the mean" in capsys.readouterr().out


def test_debug_your_preference_data(capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny model knows nothing of labels; copies and contradictions are found all the same."""
    space = run("debug-your-preference-data")
    assert float(space["found"].values.sum()) == pytest.approx(float(space["margins"].min()), rel=1e-9)
    assert space["suspects"].counts()["duplicate"] == space["suspects"].counts()["conflict"] == 10
    # The rows of a pair and its copy, or its contradiction: lines of the file as they were planted.
    twice = [{line + 1, len(space["good"]) + k + 1} for k, line in enumerate(space["rows"][-10:])]
    left = {pair.prompt: pair for pair in space["cleaned"]}
    assert len(left) == len(space["cleaned"]) == len(space["planted"]) - 10
    gone = {change.line for change in space["changes"]}
    assert all(len(gone & lines) == 1 for lines in twice)
    assert "without errors" in capsys.readouterr().out


def test_a_dataset_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Its data frames are the forecast's metrics, and the model is as it was."""
    space = run("a-dataset-in-memory")
    rows = {row["step"]: row for row in space["mc"].metric_rows(space["forecast"])}
    for table, metric in ((space["by_concept"], "rewards/margins"), (space["accuracy"], "rewards/accuracies")):
        assert list(table.index) == [0, 5, 10, 15, 20]
        for concept in space["heldout"].concepts:
            assert table[concept].tolist() == pytest.approx([row[f"eval_{concept}_{metric}"] for row in rows.values()])
    fresh = type(space["model"]).from_pretrained(space["folder"]).state_dict()
    assert all(bool((value == fresh[name]).all()) for name, value in space["model"].state_dict().items())
    kept = {(row["prompt"], row["chosen"]) for row in space["cleaned"]}
    assert kept == {(pair.prompt, pair.chosen) for pair in space["train"] if pair.id not in space["gone"]}
    assert "without the ten" in capsys.readouterr().out


def test_every_notebook_is_kept_without_outputs_and_run_by_a_test() -> None:
    paths = sorted(FOLDER.glob("*.ipynb"))
    assert [f"test_{path.stem.replace('-', '_')}" in globals() for path in paths] == [True] * len(paths)
    for path in paths:
        code = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert [cell["outputs"] for cell in code] == [[]] * len(code)
