"""Is the public API what an editor says it is? A client of all of it passes mypy --strict, and nothing is too long to
print."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import margincast as mc
from tests.problems import make_pairs
from tests.tiny import tiny_loaded

ROOT = Path(__file__).parents[1]
CLIENT = """
import margincast as mc
from pathlib import Path
from margincast.intervals import Estimate

version: str = mc.__version__
pairs: mc.PairSet = mc.load_pairs(Path("pairs.jsonl"), persona_dir="personas", concept_column="topic")
first: mc.Pair = pairs[0]
some: mc.PairSet = pairs[:8]
train, heldout = pairs.split(holdout=0.1, seed=1234)
loaded = mc.load_model("smollm2", cache_dir="cache")
features: mc.Features = mc.extract_features(loaded, train, heldout, cache_dir=Path("cache"))
recipe: mc.Recipe = mc.Recipe(beta=0.01, learning_rate=1e-5, max_steps=60, optimizer=mc.AdamW(1e-3), loss_type="hinge")
read: mc.Recipe = mc.Recipe.from_yaml("dpo.yaml")
steps: int = read.for_pairs(len(train)).steps
exact: mc.Forecast = mc.forecast_frozen(features, recipe)
either = mc.forecast(features, recipe)
width: float = float(either.heldout.margins[-1].mean())
fitted: mc.TrainedForecast = mc.forecast_trained(features, recipe)
low: Estimate = fitted.bands[""].accuracy[-1]
contributions = exact.attribution(pair=7)
total: float = float(contributions.sum())
again: mc.Forecast = mc.rerun(features, mc.drop(len(train), [0]), recipe)
slopes: mc.Sensitivity = mc.sensitivity(features, recipe)
parts: dict[int, mc.Attribution] = mc.attribute(features, recipe, at=[60])
suspects: mc.Suspects = mc.find_issues(features)
counts: dict[str, int] = suspects.counts()
changes = mc.plan_changes(suspects, "drop")
mc.write_cleaned("cleaned.jsonl", train, heldout, changes)
encoding = mc.encode(pairs, loaded.tokenizer)
run: mc.Trajectory = mc.train_model(loaded, encoding, features, recipe, "runs/train")
positions: mc.Positions = mc.extract_positions(loaded, train, heldout)
long: mc.Trajectory = mc.forecast(positions, mc.Recipe(train="head"))
kept: mc.Run = mc.load_run("runs/train")
frame = exact.to_pandas()
exact.save("runs/f")
fitted.report(Path("f.html"))
agreement: mc.Comparison = mc.compare(kept, exact)
rank: float = agreement.heldout.spearman.value
rows = mc.metric_rows(run)
structure: mc.Structure = mc.inspect_features(features)
prompts: mc.Prompts = mc.extract_prompts(loaded, train, heldout)
topics: mc.Topics = mc.find_topics(prompts.train, train, count=4).place(prompts.heldout, heldout)
named: mc.PairSet = topics.relabel(train)
callback = mc.MarginCallback(heldout, Path("runs/trl"))
loss: mc.Loss = mc.custom_loss("cosh", lambda r: (1 - r).cosh())
names: tuple[str, ...] = mc.LOSSES.names + mc.OPTIMIZERS.names
"""


def test_a_client_of_the_whole_api_is_typed(tmp_path: Path) -> None:
    client = tmp_path / "client.py"
    revealed = [f"reveal_type({name})" for name in ("contributions", "either", "changes", "encoding", "callback")]
    client.write_text(CLIENT + "\n".join(revealed) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(client)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    types = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(types) == len(revealed)
    assert not any("Any" in each for each in types), types


def test_editors_see_what_is_imported_on_use() -> None:
    tree = ast.parse(Path(mc.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == mc._HOMES


def test_every_name_in_readme_and_docs_is_exported() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    used = {name for page in pages for name in re.findall(r"\bmc\.(\w+)", page.read_text(encoding="utf-8"))}
    assert len(used) > 15
    assert used - set(mc.__all__) - {"__version__"} == set()


def test_what_is_printed_fits_on_a_screen() -> None:
    pairs = make_pairs(400)
    assert len(repr(pairs)) < 200
    assert isinstance(pairs[:3], mc.PairSet) and len(pairs[:3]) == 3
    assert pairs[:3][0] is pairs[0]
    margins = torch.zeros(3, 400)
    split = mc.SplitTrajectory(pairs, margins)
    assert len(repr(mc.Trajectory((0, 1, 2), split, split, 0.1))) < 500


def test_paths_are_strings_too(tmp_path: Path) -> None:
    with pytest.raises(mc.InputError, match="does not exist"):
        mc.load_run(str(tmp_path / "none"))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": " Yes", "rejected": " No"}\n' * 3)
    assert len(mc.load_pairs(tmp_path / "pairs.jsonl")) == len(mc.load_pairs(str(tmp_path / "pairs.jsonl"))) == 3


def test_one_call_says_exact_or_fitted(tmp_path: Path) -> None:
    train, heldout = make_pairs(24).split(holdout=0.25, seed=1)
    features = mc.extract_features(tiny_loaded(), train, heldout, cache_dir=str(tmp_path))
    quick = {"max_steps": 3, "per_device_train_batch_size": 4}
    exact = mc.forecast(features, mc.Recipe(train="head", **quick))
    fitted = mc.forecast(features, mc.Recipe(**quick))
    assert isinstance(exact, mc.Forecast) and isinstance(fitted, mc.TrainedForecast)
    with pytest.raises(mc.InputError, match="takes no rehearsal and no pilot"):
        mc.forecast(features, mc.Recipe(train="head", **quick), pilot=exact)
    shown: list[Any] = [exact, fitted, mc.compare(exact, fitted), mc.inspect_features(features)]
    shown.append(mc.find_issues(features))
    for result in shown:
        assert len(result.to_pandas()) > 0
        assert result._repr_html_().startswith("<table>")
    for name, result in (("exact", exact), ("fitted", fitted)):
        result.save(tmp_path / name)
        again = mc.load_run(tmp_path / name)
        assert torch.equal(again.trajectory.heldout.margins, result.heldout.margins)
        result.report(tmp_path / f"{name}.html")
        assert "<svg" in (page := (tmp_path / f"{name}.html").read_text()) or "data:image/svg" in page
    frame = exact.to_pandas()
    last = frame[(frame.step == 3) & (frame.split == "heldout")]
    assert last.margin.tolist() == exact.heldout.margins[-1].tolist()


def test_responses_of_any_length_are_forecast_by_the_same_call(tmp_path: Path) -> None:
    """Of single tokens both routes give the same margins: one has the whole unembedding as its state."""
    train, heldout = make_pairs(24).split(holdout=0.25, seed=1)
    loaded, recipe = tiny_loaded(), mc.Recipe(train="head", max_steps=4, per_device_train_batch_size=4)
    positions = mc.extract_positions(loaded, train, heldout, cache_dir=tmp_path)
    features = mc.extract_features(loaded, train, heldout, cache_dir=tmp_path)
    whole, small = mc.forecast(positions, recipe), mc.forecast(features, recipe)
    assert len(repr(positions)) < 100
    torch.testing.assert_close(whole.heldout.margins, small.heldout.margins, rtol=1e-6, atol=1e-9)
    with pytest.raises(mc.InputError, match="positions are for train head"):
        mc.forecast(positions, mc.Recipe())
