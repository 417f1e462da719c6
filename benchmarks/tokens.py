"""Multi-token forecasts on hh-helpful: the full-matrix recursion beside real training of the unembedding.

Needs $MARGINCAST_DATA_DIR with hh-helpful/train.jsonl and test.jsonl in it. Responses are cut at 32 tokens.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scipy.stats import spearmanr

from benchmarks.harness import Row, seconds_once
from benchmarks.packing import model
from margincast.data import load_pairs
from margincast.dynamics.optimizers import AdamW
from margincast.features import Encoding, encode, features_of
from margincast.losses import get_loss
from margincast.models.load import default_cache_dir
from margincast.records import PairSet, Trajectory
from margincast.runs import peak_memory_bytes
from margincast.tokens import forecast_tokens, head_of, response_rates, token_features
from margincast.training import TrainingSettings, train_model

PAIRS, CUT = 64, 32
SETTINGS = TrainingSettings(train="head", beta=0.1, learning_rate=1e-4, max_steps=20, eval_steps=10, seed=0)


def rows() -> Iterator[Row]:
    loaded = model()
    folder = Path(os.environ["MARGINCAST_DATA_DIR"]) / "hh-helpful"
    splits = [load_pairs(str(folder / f"{name}.jsonl"), on_bad_row="skip").pairs[:PAIRS] for name in ("train", "test")]
    train, heldout = map(PairSet, splits)
    encoding = cut(encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer, eos=True, on_bad_row="skip"), CUT)
    forecasts: list[Trajectory] = []
    trained: list[Trajectory] = []
    features = token_features(loaded, encoding, train, heldout, cache_dir=default_cache_dir())
    unembedding, _ = head_of(loaded)

    def ours() -> None:
        forecasts.append(
            forecast_tokens(
                *features, (train, heldout), unembedding, beta=SETTINGS.beta, optimizer=AdamW(SETTINGS.learning_rate),
                steps=SETTINGS.max_steps, eval_steps=SETTINGS.eval_steps, seed=SETTINGS.seed,
            )
        )  # fmt: skip

    def theirs() -> None:
        copied = replace(loaded, model=copy.deepcopy(loaded.model))
        with tempfile.TemporaryDirectory() as name:
            known = features_of(copied, encoding, train, heldout, cache_dir=Path(name) / "cache")
            trained.append(train_model(copied, encoding, known, SETTINGS, Path(name) / "run", save_model=False))

    mine, real = seconds_once(ours), seconds_once(theirs)
    forecast, training = forecasts[0], trained[0]
    gaps = []
    for split in ("train", "heldout"):
        margins = getattr(training, split).margins
        gaps.append(float((getattr(forecast, split).margins - margins).abs().max() / margins.abs().max()))
    name = f"head training, {PAIRS} + {PAIRS} pairs, {SETTINGS.max_steps} steps: margins differ by {max(gaps):.1e}"
    yield Row(
        name, "train --train head", max(gaps) <= 1e-3, real / mine, real / mine, real / mine, "agrees", mine, real,
        peak_memory_bytes(),
    )  # fmt: skip
    for split, of in (("train", features[0]), ("heldout", features[1])):
        moved = getattr(training, split).chosen[-1]
        rates = response_rates(features[0], of, unembedding, get_loss("sigmoid"), SETTINGS.beta)[:, 0]
        for what, predicted in (("forecast", getattr(forecast, split).chosen[-1]), ("rates at step 0", rates)):
            rho = float(spearmanr(predicted, moved).statistic)
            falls = float((moved < 0).double().mean())
            name = f"log pi(chosen), {split} ({falls:.0%} fall), Spearman with {what}"
            target = ">= 0.95" if what == "forecast" else ""
            yield Row(name, "train --train head", None, rho, rho, rho, target, mine, real)


def cut(encoding: Encoding, length: int) -> Encoding:
    """`encoding` with responses of at most `length` tokens."""
    rows = (replace(row, chosen=row.chosen[:length], rejected=row.rejected[:length]) for row in encoding.rows)
    return replace(encoding, rows=tuple(rows))
