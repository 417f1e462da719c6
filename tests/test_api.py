"""Is the public API what an editor says it is? A client of all of it passes mypy --strict, and nothing is too long to
print."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import margincast as mc
from margincast.report.sections import page_of, read_summary
from tests.conftest import REPOSITORY
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
constants: mc.Constants = mc.fit_constants([mc.TrainedRun.from_folder("runs/train", loaded, rehearsal=0)])
elsewhere = mc.forecast(features, recipe, constants=constants)
low: Estimate = fitted.bands[""].accuracy[-1]
found: mc.PairAttribution = exact.attribution(pair=7)
contributions = found.values
total: float = float(contributions.sum()) + found.start
most: tuple[str, float] = (found.top(3)[0].pair.id, found.top(3)[0].value)
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
long: mc.TokenForecast = mc.forecast(positions, mc.Recipe(train="head"))
of_all: mc.PairAttribution = long.attribution(concept="topic")
lengths: mc.RewardProfile = long.reward_profile()
a_token: float = lengths.heldout.slope("chosen").value
fewer: mc.TokenForecast = mc.rerun(positions, mc.drop(len(train), [0]), recipe)
first_order: mc.Sensitivity = mc.sensitivity(positions, recipe, lambda margins: margins.mean()[None])
kept: mc.Run = mc.load_run("runs/train")
frame = exact.to_pandas()
exact.save("runs/f")
fitted.report(Path("f.html"))
agreement: mc.Comparison = mc.compare(kept, exact)
rank: float = agreement.heldout.spearman.value
rows = mc.metric_rows(run)
structure: mc.Structure = mc.inspect_features(features)
structure.save(Path("runs/inspect"))
met: tuple[bool, ...] = tuple(check.holds for check in mc.measured_conditions(structure))
diagnosis: mc.Diagnosis = mc.diagnose_run(features, recipe, pair=train[0].id)
effect = mc.clean(diagnosis, "cleaned.jsonl", action="flip", share=0.1).cleaned
moved: float = 0.0 if effect is None else effect.effect.rerun.margin - effect.effect.now.margin
pushes: mc.Decomposition = mc.decompose(positions, train[0].id, recipe, word=loaded.tokenizer.decode)
rate: float = pushes.training_tokens["chosen"][0].total + pushes.rates.margin
falling: mc.Displacements = mc.displacements(positions, recipe)
mc.write_without_worst(falling, pairs, "kept.jsonl", share=0.2).report("falling.html")
distribution = mc.preference_distribution(4, 100, 500, 0.4, 0.025)
promised: mc.Bounds = mc.bounds(distribution, beta=0.1)
vacuous: bool = promised.readings["printed"].risk_vacuous
drawn: mc.Simulation = mc.simulate(distribution, beta=0.1)
swept: mc.Sweep = mc.sweep("seed", {0: mc.Setup(distribution, 0.1), 1: mc.Setup(distribution, 0.1, seed=1)})
growth: tuple[float, ...] = tuple(each.growth for each in swept.runs)
prompts: mc.Prompts = mc.extract_prompts(loaded, train, heldout)
topics: mc.Topics = mc.find_topics(prompts.train, train, count=4).place(prompts.heldout, heldout)
named: mc.PairSet = topics.relabel(train)
callback = mc.MarginCallback(heldout, Path("runs/trl"))
loss: mc.Loss = mc.custom_loss("cosh", lambda r: (1 - r).cosh())
names: tuple[str, ...] = mc.LOSSES.names + mc.OPTIMIZERS.names
"""


def test_a_client_of_the_whole_api_is_typed(tmp_path: Path) -> None:
    client = tmp_path / "client.py"
    revealed = [
        f"reveal_type({name})"
        for name in ("contributions", "either", "changes", "encoding", "callback", "effect", "distribution")
    ]
    client.write_text(CLIENT + "\n".join(revealed) + "\n")
    # With the settings and the cache of `make test`'s own check, which has just read the library.
    known = ["--config-file", str(REPOSITORY / "pyproject.toml"), "--cache-dir", str(REPOSITORY / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", "--strict", *known, str(client)]
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
    with pytest.raises(mc.InputError, match="takes no rehearsal, no pilot and no calibration"):
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


def test_what_a_command_finds_is_one_call_that_shows_and_keeps_itself(tmp_path: Path) -> None:
    """The folder that Python leaves is one that `margincast report` reads; its results are the record's numbers."""
    train, heldout = make_pairs(24).split(holdout=0.25, seed=1)
    loaded = tiny_loaded()
    recipe = mc.Recipe(train="head", max_steps=3, learning_rate=1e-2, per_device_train_batch_size=4)
    features = mc.extract_features(loaded, train, heldout, cache_dir=tmp_path)
    positions = mc.extract_positions(loaded, train, heldout, cache_dir=tmp_path)
    distribution = mc.preference_distribution(2, 10, 20, 0.4, 0.02)
    word = loaded.tokenizer.decode
    found: dict[str, Any] = {
        "inspect": mc.inspect_features(features),
        "bounds": mc.bounds(distribution, 0.3),
        "simulate": mc.simulate(distribution, 0.3, points=5),
        "sweep": mc.sweep("seed", {5: mc.Setup(distribution, 0.3, seed=5)}),
        "attribute": mc.diagnose_run(features, recipe, pair=heldout[0].id, top=3),
        "pair": mc.decompose(positions, heldout[0].id, recipe, word=word),
        "all": mc.displacements(positions, recipe, word=word),
    }
    results = {}
    for name, record in found.items():
        assert len(record.to_pandas()) > 0
        assert record._repr_html_().startswith("<table>")
        record.save(tmp_path / name)
        results[name] = read_summary(tmp_path / name)["results"]
        assert page_of(tmp_path / name) == (tmp_path / name / "report.html").read_text()
    found["bounds"].report(str(tmp_path / "bounds.html"))
    page = (tmp_path / "bounds.html").read_text()
    assert "Smallest Q that says anything" in page and "margincast bounds: bounds" in page
    pair = results["attribute"]["pair"]
    assert pair["margin"] == pytest.approx(mc.forecast_frozen(features, recipe).attribution(0).margin, rel=1e-9)
    assert sum(row["contribution"] for row in pair["top"]) + pair["rest"] == pytest.approx(pair["margin"], rel=1e-6)
    # Two routes to the margin's rate at the start: summed over training pairs, and from the pair's own tokens.
    rates, tokens = results["pair"]["rates"], results["pair"]["tokens"]
    assert rates["margin"] == pytest.approx(
        sum(row["total"] for row in tokens["chosen"]) - sum(row["total"] for row in tokens["rejected"]), rel=1e-4
    )
    assert results["sweep"]["seed"] == 5 and results["sweep"]["growth"] == found["sweep"].runs[0].growth
    assert results["all"]["splits"]["heldout"]["pairs"] == len(heldout)
    for wrong in (mc.diagnose_run, lambda _, recipe, pair: mc.decompose(positions, pair, recipe)):
        with pytest.raises(mc.InputError, match="no pair has the id 'none'; ids are like"):
            wrong(features, recipe, pair="none")  # type: ignore[operator]


def test_what_python_cleans_is_what_the_record_says(tmp_path: Path) -> None:
    train, heldout = make_pairs(24).split(holdout=0.25, seed=1)
    loaded, recipe = tiny_loaded(), mc.Recipe(train="head", max_steps=3, per_device_train_batch_size=4)
    features = mc.extract_features(loaded, train, heldout, cache_dir=tmp_path)
    cleaned = mc.clean(mc.diagnose_run(features, recipe), tmp_path / "kept.jsonl", share=0.2).cleaned
    assert cleaned is not None and cleaned.changed
    left = [row["id"] for row in map(json.loads, (tmp_path / "kept.jsonl").read_text().splitlines())]
    assert left == [pair.id for pair in train if pair.id not in cleaned.changed]
    gone = [k for k, pair in enumerate(train) if pair.id in cleaned.changed]
    again = mc.rerun(features, mc.drop(len(train), gone), recipe).heldout.margins[-1]
    assert cleaned.effect.rerun.margin == pytest.approx(float(again.mean()), rel=1e-12)
    positions = mc.extract_positions(loaded, train, heldout, cache_dir=tmp_path)
    pairs = mc.PairSet(train.pairs + heldout.pairs)
    falling = mc.write_without_worst(mc.displacements(positions, recipe), pairs, tmp_path / "w.jsonl", weight=0.5)
    rows = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert falling.exported is not None
    assert {row["id"] for row in rows if row["weight"] == 0.5} == set(falling.exported.worst)
    with pytest.raises(mc.InputError, match="worst must be between 0 and 1"):
        falling.worst(1.5)


def test_responses_of_any_length_are_forecast_by_the_same_call(tmp_path: Path) -> None:
    """Of single tokens both routes give the same margins: one has the whole unembedding as its state."""
    train, heldout = make_pairs(24).split(holdout=0.25, seed=1)
    loaded, recipe = tiny_loaded(), mc.Recipe(train="head", max_steps=4, per_device_train_batch_size=4)
    positions = mc.extract_positions(loaded, train, heldout, cache_dir=tmp_path)
    features = mc.extract_features(loaded, train, heldout, cache_dir=tmp_path)
    whole, small = mc.forecast(positions, recipe, dtype=torch.float64), mc.forecast(features, recipe)
    assert len(repr(positions)) < 100
    torch.testing.assert_close(whole.heldout.margins, small.heldout.margins, rtol=1e-6, atol=1e-9)
    quick = mc.forecast(positions, recipe)
    assert quick.dtype == torch.float32
    torch.testing.assert_close(quick.heldout.margins.double(), whole.heldout.margins, rtol=1e-4, atol=1e-7)
    with pytest.raises(mc.InputError, match="dtype is for exact forecasts"):
        mc.forecast(features, mc.Recipe(), dtype=torch.float32)
    with pytest.raises(mc.InputError, match="positions are for train head"):
        mc.forecast(positions, mc.Recipe())
