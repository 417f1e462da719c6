"""Multi-token responses on the real model and real conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.data import load_pairs
from margincast.features.positions import Positions, extract_positions
from margincast.frozen.attribution.counterfactual import predict_edits
from margincast.frozen.attribution.edits import drop
from margincast.frozen.attribution.sensitivity import reweighed
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.models import load_model
from margincast.passes.tokenize import encode
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.sgd import SGD
from margincast.records import PairSet
from tests.features.test_positions import head_rates, our_rates
from tests.recipes import head_recipe

pytestmark = pytest.mark.real
WORDS = 1500  # of the vocabulary, those of the responses among them
RUNS: dict[str, tuple[Optimizer, dict[str, Any]]] = {
    "sgd": (SGD(1e-2), {}),
    "nesterov": (SGD(3e-3, momentum=0.9, nesterov=True), {}),
    "adamw": (AdamW(1e-3, weight_decay=0.01), {}),
    "ipo": (AdamW(1e-3), {"loss_type": "ipo"}),
    "flow": (GradientFlow(5e-5), {}),
}


@pytest.fixture(scope="module")
def short(shared: Path, cache_dir: Path) -> Positions:
    """Short conversations, the first words of their responses, a part of the vocabulary."""
    pairs = load_pairs(str(shared / "data" / "hh-helpful" / "train.jsonl"), on_bad_row="skip")
    cut = [
        replace(pair, chosen=pair.chosen[:40], rejected=pair.rejected[:40]) for pair in pairs if len(pair.prompt) < 150
    ]
    different = [pair for pair in cut if pair.chosen != pair.rejected]
    found = extract_positions(
        "smollm2", PairSet(tuple(different[:12])), PairSet(tuple(different[12:16])), cache_dir=cache_dir
    )
    used = torch.unique(torch.cat([found.train.target, found.heldout.target]))
    others = torch.randperm(len(found.unembedding), generator=torch.Generator().manual_seed(0))
    words = torch.cat([used, others[~torch.isin(others, used)]])[:WORDS]
    place = torch.full((len(found.unembedding),), -1)
    place[words] = torch.arange(WORDS)
    splits = [replace(part, target=place[part.target], reference=None) for part in (found.train, found.heldout)]
    return replace(found, train=splits[0], heldout=splits[1], unembedding=found.unembedding[words])


@pytest.mark.parametrize(
    "name, dtype, tolerance",
    [(name, torch.float64, 1e-9) for name in RUNS] + [(name, torch.float32, 1e-4) for name in RUNS if name != "flow"],
)
def test_contributions_sum_to_the_margins(short: Positions, name: str, dtype: torch.dtype, tolerance: float) -> None:
    optimizer, more = RUNS[name]
    recipe = head_recipe(beta=0.1, optimizer=optimizer, steps=6, batch_size=5, eval_steps=3, **more)
    run = forecast_positions(short, recipe, dtype=dtype)
    found = run.attributions([run.target(), run.target(0), run.target(3, split="train")])
    assert max(abs(each.margin) for each in found) > 1e-3
    assert max(abs(each.residual) for each in found) <= tolerance * max(abs(each.margin) for each in found)


def test_dropping_a_pair_is_predicted_with_adam(short: Positions) -> None:
    recipe = head_recipe(beta=0.1, optimizer=AdamW(1e-4), steps=6, batch_size=4, eval_steps=6)
    edits = [drop(12, [row]) for row in range(12)]
    found = predict_edits(short, edits, recipe, torch.mean)
    actual = torch.stack([reweighed(short, edit, recipe).mean() for edit in edits])
    assert float(torch.corrcoef(torch.stack([actual, found.edited[:, 0]]))[0, 1]) > 0.95


def test_rates_on_the_real_model_and_real_responses(shared: Path, cache_dir: Path, tmp_path: Path) -> None:
    loaded = load_model("smollm2", cache_dir=cache_dir)
    pairs = load_pairs(str(shared / "data" / "hh-helpful" / "train.jsonl"), on_bad_row="skip")
    encoding = encode(PairSet(pairs.pairs[:6]), loaded.tokenizer, eos=True, on_bad_row="skip")
    features, rates = our_rates(loaded, encoding, tmp_path)
    assert len(features.hidden) > 100
    expected = head_rates(loaded, encoding)
    assert float((rates - expected).abs().max() / expected.abs().max()) <= 1e-3
