"""Whose chosen likelihood falls under full fine-tuning? Predictions of frozen features, and CHES, against real runs.

Needs $MARGINCAST_DATA_DIR with hh-helpful/train.jsonl and test.jsonl in it; responses are cut at 64 tokens. For each
seed SmolLM2 is trained, all weights, on other pairs in another order. What a run did is kept in the cache, and a second
call of the benchmark continues after it.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.harness import Row
from benchmarks.packing import model
from benchmarks.tokens import cut
from margincast.data import load_pairs
from margincast.features import features_of
from margincast.frozen.tokens import ches, forecast_tokens, head_of, response_rates, token_features
from margincast.models.load import default_cache_dir
from margincast.passes.tokenize import encode
from margincast.recipe.losses import get_loss
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet
from margincast.runs.store import key_of, write_tensors
from margincast.training.run import train_model

PAIRS, HELDOUT, CUT, SEEDS, RESAMPLES = 128, 128, 64, (0, 1, 2), 2000
SETTINGS = Recipe(
    beta=0.1, learning_rate=5e-6, max_steps=20, eval_steps=10, per_device_train_batch_size=16
)  # fmt: skip


def rows() -> Iterator[Row]:
    runs = [run(seed) for seed in SEEDS]
    for split in ("train", "heldout"):
        for side in ("chosen", "rejected"):
            for what in ("rate", "frozen", "ches", "ches_normalized"):
                for seed, result in zip(SEEDS, runs, strict=True):
                    actual = result[f"{split}_{side}"].numpy()
                    predicted = result[f"{split}_{side}_{what}"].numpy()
                    if what.startswith("ches"):
                        predicted = -predicted  # a larger score is a larger fall
                    rho, low, high = correlation(predicted, actual)
                    falls = float((actual < 0).mean())
                    name = f"log pi({side}), {split}, seed {seed} ({falls:.0%} fall), Spearman with {what}"
                    seconds = float(result["seconds"][0])
                    yield Row(name, "full fine-tuning", None, rho, low, high, "", seconds)


def correlation(predicted: np.ndarray, actual: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation and the ends of its 95% bootstrap interval over pairs."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(actual), size=(RESAMPLES, len(actual)))
    again = [spearmanr(predicted[draw], actual[draw]).statistic for draw in draws]
    low, high = np.quantile(again, (0.025, 0.975))
    return float(spearmanr(predicted, actual).statistic), float(low), float(high)


def run(seed: int) -> dict[str, Tensor]:
    """Predictions and actual changes of one seed, (pairs,) each, of training and held-out pairs."""
    settings = replace(SETTINGS, seed=seed)
    where = default_cache_dir() / "displacement" / key_of([PAIRS, HELDOUT, CUT, asdict(settings)])[:16]
    kept = where / "result.safetensors"
    if kept.is_file():
        return load_file(kept)
    loaded = model()
    folder = Path(os.environ["MARGINCAST_DATA_DIR"]) / "hh-helpful"
    splits = []
    for name, count in (("train", PAIRS), ("test", HELDOUT)):
        pairs = list(load_pairs(str(folder / f"{name}.jsonl"), on_bad_row="skip").pairs)
        splits.append(PairSet(tuple(random.Random(seed).sample(pairs, count))))
    train, heldout = splits
    encoding = cut(encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer, eos=True, on_bad_row="skip"), CUT)
    known_positions = token_features(loaded, encoding, train, heldout, cache_dir=where / "cache")
    features = dict(zip(("train", "heldout"), known_positions, strict=True))
    unembedding, _ = head_of(loaded)
    forecast = forecast_tokens(
        features["train"], features["heldout"], (train, heldout), unembedding, replace(settings, train="head"),
        dtype=torch.float32,
    )  # fmt: skip
    copied = replace(loaded, model=copy.deepcopy(loaded.model))
    known = features_of(copied, encoding, train, heldout, cache_dir=where / "cache")
    start = time.perf_counter()
    trained = train_model(copied, encoding, known, settings, where / "run", save_model=False)
    result: dict[str, Tensor] = {}
    for name, of in features.items():
        rates = response_rates(features["train"], of, unembedding, get_loss("sigmoid"), settings.beta)
        scores = {"ches": ches(of), "ches_normalized": ches(of, length_normalized=True)}
        for kind, trajectory in (("_frozen", forecast), ("", trained)):
            split = getattr(trajectory, name)
            assert split.chosen is not None
            result[f"{name}_chosen{kind}"] = split.chosen[-1] / settings.beta
            result[f"{name}_rejected{kind}"] = (split.chosen[-1] - split.margins[-1]) / settings.beta
        for column, side in enumerate(("chosen", "rejected")):
            result[f"{name}_{side}_rate"] = rates[:, column].clone()
            result |= {f"{name}_{side}_{score}": values.clone() for score, values in scores.items()}
    result["seconds"] = rates.new_full((1,), time.perf_counter() - start)
    write_tensors(kept, result)
    return result
