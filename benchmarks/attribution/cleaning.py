"""Does cleaning help full fine-tuning? A fifth of the labels exchanged; then what `--export` leaves, and clean data.

All weights of SmolLM2 are trained, the same number of steps for each version of the data. What a run did is kept in the
cache, and a second call of the benchmark continues after it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from safetensors.torch import load_file

from benchmarks.attribution.planted import cache, exchange_responses, flips, persona_features, rows_of
from benchmarks.harness import Row
from benchmarks.packing import model
from margincast.diagnose import find_issues, plan_changes
from margincast.intervals import proportion
from margincast.passes.tokenize import encode
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, PairSet
from margincast.runs.store import key_of, write_tensors
from margincast.training.run import train_model

DATA, SHARE, SEEDS = "persona:k1", 0.2, (0,)
SETTINGS = Recipe(
    beta=0.01, learning_rate=1e-5, max_steps=40, eval_steps=20, per_device_train_batch_size=32, record_train=16
)  # fmt: skip


def rows() -> Iterator[Row]:
    features = persona_features(DATA)
    for seed in SEEDS:
        for name, train in versions(features.train, seed).items():
            accuracy, margin, count, seconds = trained(replace(features, train=train), name, seed)
            known = proportion(round(accuracy * count), count)
            title = f"{DATA} seed {seed}, {SHARE:.0%} exchanged: {name} ({len(train.pairs)} pairs), held-out accuracy"
            yield Row(title, f"margin {margin:.3f}", None, accuracy, known.low, known.high, "", seconds)


def versions(clean: FeatureSet, seed: int) -> dict[str, FeatureSet]:
    """The training data as it should be, as it is, and as `margincast attribute --export` leaves it."""
    planted = flips(clean, seed, SHARE)
    suspects = find_issues(planted.split)
    named = {change.id for change in plan_changes(suspects, "drop", ("mislabel",))}
    suspected = torch.tensor([pair.id in named for pair in planted.split.pairs])
    return {
        "exchanged": planted.split,
        "suspects dropped": rows_of(planted.split, (~suspected).nonzero().squeeze(1)),
        "suspects flipped": exchange_responses(planted.split, suspected),
        "clean": clean,
    }


def trained(features: Features, name: str, seed: int) -> tuple[float, float, int, float]:
    """Held-out accuracy and mean margin after the run, of how many pairs, and seconds."""
    # Not the seed of the flips: the first epoch would take them in the order in which they were drawn, all at first.
    settings = replace(SETTINGS, seed=100 + seed)
    what = [features.train.pairs.fingerprint, features.heldout.pairs.fingerprint, asdict(settings)]
    where = cache() / "cleaning" / key_of(what)[:16]
    kept = where / "result.safetensors"
    if not kept.is_file():
        loaded = model()
        loaded = replace(loaded, model=copy.deepcopy(loaded.model))
        encoding = encode(PairSet(features.train.pairs.pairs + features.heldout.pairs.pairs), loaded.tokenizer)
        start = time.perf_counter()
        run = train_model(loaded, encoding, features, settings, where / "run", save_model=False)
        seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        write_tensors(kept, {"margins": run.heldout.margins, "seconds": seconds})
    result = load_file(kept)
    last = result["margins"][-1]
    return float((last > 0).double().mean()), float(last.mean()), len(last), float(result["seconds"][0])
