"""What does leaving out each of 60 chat pairs do with AdamW? Predictions against reruns, on hh-helpful and SmolLM2.

    python -m benchmarks.attribution.drops

Needs $MARGINCAST_DATA_DIR with hh-helpful/train.jsonl. Prompts of less than 400 characters, 60 + 20 pairs, the first 8
tokens of each response; the softmax is over `WORDS` tokens, those of the responses and others drawn at random. The
reruns keep the batches of the run; "drawn anew" is `rerun`, whose batches are those of training on 59 pairs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Row
from margincast.data import load_pairs
from margincast.features.positions import Positions, TokenFeatures, extract_positions
from margincast.frozen.attribution.counterfactual import predict_edits, rerun
from margincast.frozen.attribution.edits import drop
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet

PAIRS, HELDOUT, WORDS, CUT = 60, 20, 3000, 8
RUN = Recipe(train="head", optimizer="adamw", beta=0.1, per_device_train_batch_size=20, max_steps=12)
RUNS = {
    "12 steps at 1e-4": replace(RUN, learning_rate=1e-4),
    "12 steps at 1e-3": replace(RUN, learning_rate=1e-3),
    "60 steps at 1e-4": replace(RUN, learning_rate=1e-4, max_steps=60),
}


def rows() -> Iterator[Row]:
    positions = problem()
    edits = [drop(PAIRS, [row]) for row in range(PAIRS)]
    for name, recipe in RUNS.items():
        seconds, found = timed(lambda recipe=recipe: predict_edits(positions, edits, recipe))
        before, changes = found.values.mean(), found.edited.mean(1) - found.values.mean()
        taken, actual = timed(lambda recipe=recipe: [reweighed(positions, edit, recipe).mean() for edit in edits])
        truth = torch.stack(actual) - before
        anew = torch.tensor([float(rerun(positions, edit, recipe).heldout.margins[-1].mean()) for edit in edits])
        others = {
            "first order": lambda recipe=recipe: -sensitivity(positions, recipe, torch.mean).weights[0],
            "minus the contributions": lambda recipe=recipe: (
                -forecast_positions(positions, recipe).attribution().values
            ),
        }
        yield row(name, "rerun", changes, truth, seconds, taken, ">= 0.9")
        yield row(name, "rerun, drawn anew", changes, anew.double() - before, seconds, None, "")
        yield row(f"{name}, rerun", "rerun, drawn anew", truth, anew.double() - before, taken, None, "")
        for other, way in others.items():
            spent, values = timed(way)
            yield row(f"{name}, {other}", "rerun", values, truth, spent, taken, "")


def row(name: str, peer: str, ours: Tensor, theirs: Tensor, seconds: float, taken: float | None, target: str) -> Row:
    """Correlation of the changes of the mean held-out margin."""
    value = float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
    return Row(name, peer, None, value, value, value, target, seconds, taken)


def timed(work):  # type: ignore[no-untyped-def]
    """Processor seconds of `work`, and what it gave."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def problem() -> Positions:
    pairs = load_pairs(str(Path(os.environ["MARGINCAST_DATA_DIR"]) / "hh-helpful" / "train.jsonl"), on_bad_row="skip")
    cut = [
        replace(pair, chosen=pair.chosen[:70], rejected=pair.rejected[:70]) for pair in pairs if len(pair.prompt) < 400
    ]
    some = [pair for pair in cut if pair.chosen != pair.rejected][: PAIRS + HELDOUT]
    found = extract_positions("smollm2", PairSet(tuple(some[:PAIRS])), PairSet(tuple(some[PAIRS:])), max_length=512)
    splits = [shortened(part) for part in (found.train, found.heldout)]
    used = torch.unique(torch.cat([part.target for part in splits]))
    others = torch.randperm(len(found.unembedding), generator=torch.Generator().manual_seed(0))
    words = torch.cat([used, others[~torch.isin(others, used)]])[:WORDS]
    place = torch.full((len(found.unembedding),), -1)
    place[words] = torch.arange(WORDS)
    train, heldout = (replace(part, target=place[part.target], reference=None) for part in splits)
    return replace(found, train=train, heldout=heldout, unembedding=found.unembedding[words])


def shortened(features: TokenFeatures) -> TokenFeatures:
    """The first `CUT` tokens of each response."""
    first = torch.searchsorted(features.response, torch.arange(2 * features.pairs))
    return features.positions(torch.arange(len(features.response)) - first[features.response] < CUT)


if __name__ == "__main__":
    for each in rows():
        print(each.line(), flush=True)
