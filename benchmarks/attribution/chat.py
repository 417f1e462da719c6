"""Who finds exchanged responses among chat pairs? margincast against a cross-validated head, length and likelihood.

    python -m benchmarks.attribution.chat       this claim alone

Needs $MARGINCAST_DATA_DIR with hh-helpful/train.jsonl and test.jsonl (500 pairs are used) and chat/dpo_en_demo.json in
it; a data set that is not there is left out, and its row says so. A tenth of the training pairs is exchanged, by ten
seeds, of which 0 to 2 were seen once before the kernel was settled. Areas under the curve, with the standard error of
their mean. Every way sees the same SmolLM2 features, and chooses its settings by the labels as they are given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.attribution.flips import auroc
from benchmarks.attribution.planted import cache, drawn
from benchmarks.harness import Row
from benchmarks.packing import model
from margincast.data import load_pairs
from margincast.diagnose import find_issues
from margincast.diagnose.sequences import lengths_of, mean_features, reference_of
from margincast.features.positions import Positions, TokenFeatures, head_of, token_features
from margincast.passes.tokenize import encode
from margincast.records import Pair, PairSet

SHARE, SEEDS = 0.1, range(10)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of a logistic head's fit, C
Way = Callable[[Positions], Tensor]


def hh_helpful(folder: Path) -> tuple[PairSet, PairSet, int]:
    parts = [load_pairs(str(folder / "hh-helpful" / f"{name}.jsonl"), on_bad_row="skip") for name in ("train", "test")]
    return parts[0][:500], parts[1][:250], 4096


def dpo_en(folder: Path) -> tuple[PairSet, PairSet, int]:
    pairs = load_pairs(str(folder / "chat" / "dpo_en_demo.json"), on_bad_row="skip")
    length = 2048
    pairs = encode(pairs, model().tokenizer, max_length=length, on_bad_row="skip").pairs
    return *pairs.split(0.1), length


SETS = {"hh-helpful": (hh_helpful, "hh-helpful/train.jsonl"), "dpo_en": (dpo_en, "chat/dpo_en_demo.json")}


def ours(kind: str) -> Way:
    return lambda positions: torch.tensor([row[f"{kind}_score"] for row in find_issues(positions).issues])


def head(pooled: Callable[[TokenFeatures], Tensor]) -> Way:
    """Minus the margin that a logistic head foresees for pairs that it was not fitted on, in five folds."""

    def score(positions: Positions) -> Tensor:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss
        from sklearn.model_selection import cross_val_predict

        sides = pooled(positions.train)
        difference = (sides[:, 0] - sides[:, 1]).numpy()
        difference = difference / difference.std(axis=0)
        order = np.random.RandomState(0).choice([-1, 1], len(difference))  # which response is put first
        found = []
        for strength in STRENGTHS:
            fit = LogisticRegression(C=strength, fit_intercept=False, max_iter=500)
            margins = cross_val_predict(fit, difference * order[:, None], order, cv=5, method="decision_function")
            found.append((log_loss(order, 1 / (1 + np.exp(-margins))), -margins * order))
        return torch.from_numpy(min(found, key=lambda each: each[0])[1])

    return score


def alone(number: Callable[[TokenFeatures], Tensor]) -> Way:
    """One number of each response; which way it points is read off the pairs as they are labelled."""

    def score(positions: Positions) -> Tensor:
        sides = number(positions.train)
        difference = sides[:, 0] - sides[:, 1]
        return -difference * difference.sign().mean().sign()

    return score


def last_features(features: TokenFeatures) -> Tensor:
    ends = torch.bincount(features.response, minlength=2 * features.pairs).cumsum(0) - 1
    return features.hidden[torch.argsort(features.response, stable=True)[ends]].double().view(features.pairs, 2, -1)


def likelihood(features: TokenFeatures) -> Tensor:
    known = reference_of(features)
    assert known is not None  # of features that were extracted
    return known


WAYS: dict[str, Way] = {
    "margincast mislabel": ours("mislabel"),
    "margincast harm": ours("harm"),
    "logistic head, mean feature": head(mean_features),
    "logistic head, last token": head(last_features),
    "length": alone(lengths_of),
    "reference log-ratio": alone(likelihood),
    "reference log-ratio per token": alone(lambda features: likelihood(features) / lengths_of(features)),
}


def rows() -> Iterator[Row]:
    folder = Path(os.environ.get("MARGINCAST_DATA_DIR", "."))
    for name, (read, needed) in SETS.items():
        if not (folder / needed).is_file():
            nothing = float("nan")
            yield Row(f"{name}, flips: auroc", "-", None, nothing, nothing, nothing, f"no {needed}", nothing)
            continue
        positions = features_of(*read(folder))
        planted = [with_flips(positions, drawn(len(positions.train_pairs), SHARE, seed)) for seed in SEEDS]
        for way, score in WAYS.items():
            start = time.perf_counter()
            found = np.array([auroc(wrong.numpy(), score(each).double().numpy()) for each, wrong in planted])
            seconds = (time.perf_counter() - start) / len(SEEDS)
            middle, error = float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5)
            yield Row(f"{name}, flips: auroc", way, None, middle, middle - error, middle + error, "", seconds)


def features_of(train: PairSet, heldout: PairSet, length: int) -> Positions:
    loaded = model()
    encoding = encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer, max_length=length, context=loaded.context)
    features = token_features(loaded, encoding, train, heldout, cache_dir=cache())
    return Positions(*features, train, heldout, *head_of(loaded), loaded.name, loaded.hash)


def with_flips(positions: Positions, wrong: Tensor) -> tuple[Positions, Tensor]:
    """With the training pairs where `wrong`, (pairs,) bool, turned round, and `wrong`."""
    pairs = tuple(
        turned(pair) if turn else pair for pair, turn in zip(positions.train_pairs, wrong.tolist(), strict=True)
    )
    return positions.redrawn(PairSet(pairs), torch.arange(len(pairs)), wrong), wrong


def turned(pair: Pair) -> Pair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


if __name__ == "__main__":
    for row in rows():
        print(row.line(), flush=True)
