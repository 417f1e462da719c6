"""Results in the documentation: figures and page are what their records give; nothing names a machine's paths."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from docs.results import collect

from tests.cli.helpers import run
from tests.conftest import REPOSITORY

HERE = REPOSITORY / "docs" / "results"
COMMITTED = sorted(path.parent for path in HERE.glob("*/summary.json"))


def check(folder: Path, scratch: Path) -> None:
    """Every figure of `folder` is there and is what its records give, byte for byte."""
    collect.draw(folder, scratch)
    there, drawn = (
        {path.name: path.read_bytes() for path in (each / "figures").iterdir()} for each in (folder, scratch)
    )
    assert set(there) == set(drawn)
    assert [name for name in drawn if there[name] != drawn[name]] == []


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small reproduction, collected."""
    folder = tmp_path_factory.mktemp("results")
    words = ("--K", "1", "--seeds", "7", "--max_steps", 2)
    outcome = run("reproduce", "all", *words, "--persona_dir", folder, "--out", folder / "run")
    assert outcome.status == 0, outcome.err
    results = folder / "docs"
    collect.collect(folder / "run", results, "a machine, 2 cores")
    (results / "index.md").write_text("\n".join(collect.page(results)), encoding="utf-8")
    return results


def test_figures_are_what_the_records_give(collected: Path, tmp_path: Path) -> None:
    check(collected / "smoke", tmp_path / "again")
    changed = tmp_path / "changed"
    shutil.copytree(collected / "smoke", changed)
    curves = changed / "curves.jsonl"
    curves.write_text(curves.read_text(encoding="utf-8").replace('"loss": [0.69', '"loss": [0.59'), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"fig4\.svg"):
        check(changed, tmp_path / "other")


def test_what_made_a_result_is_beside_it(collected: Path) -> None:
    text = (collected / "smoke" / "summary.json").read_text(encoding="utf-8")
    made = json.loads(text)["made"]
    assert made["command"] == "margincast reproduce all --scale smoke --K 1 --seeds 7 --max_steps 2"
    assert made["seeds"] == [7]
    assert made["machine"] == "a machine, 2 cores"
    assert made["seconds_of_runs"] > 0
    assert absolute_paths(collected / "smoke") == []
    page = (collected / "index.md").read_text(encoding="utf-8")
    assert made["command"] in page
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (collected / figure).is_file()


def absolute_paths(folder: Path) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json*"))]
    return [found for text in texts for found in re.findall(r'"(?:/|[A-Z]:\\|~)[^"]*"', text)]


def test_results_of_a_real_reproduction_are_committed() -> None:
    assert "cpu" in [folder.name for folder in COMMITTED]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_figures_belong_to_committed_records(folder: Path, tmp_path: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["made"]) == {"command", "seeds", "machine", "seconds_of_runs"}
    assert absolute_paths(folder) == []
    then, now = summary["environment"]["packages"]["matplotlib"], version("matplotlib")
    if then != now:
        pytest.skip(f"drawn with matplotlib {then}, and {now} is installed: their bytes differ")
    check(folder, tmp_path)


def test_the_page_is_that_of_the_records(tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(HERE, results, ignore=shutil.ignore_patterns("__pycache__"))
    assert (HERE / "index.md").read_text(encoding="utf-8") == "\n".join(collect.page(results))
