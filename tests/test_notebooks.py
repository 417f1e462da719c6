"""Notebooks run from top to bottom. Their cells are plain Python, so no notebook server is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_comes_to_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("margincast.features.extract.default_cache_dir", lambda: tmp_path)
    monkeypatch.setattr("margincast.models.load.default_cache_dir", lambda: tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells(path), start=1):
        exec(compile(source, f"{path.name}, cell {number}", "exec"), space)
    # The forecast reads features in float64, training computes them in float32.
    assert space["agreement"].max_abs_difference < 1e-5 * space["agreement"].largest_margin
    assert "without the mean" in capsys.readouterr().out
