"""Multi-token forecasts on hh-helpful: the full-matrix recursion beside real training of the unembedding, the kernel of
sequence margins beside the recursion, and what `decompose --all` and `forecast` of 500 + 500 whole pairs take.

Needs $MARGINCAST_DATA_DIR with hh-helpful/train.jsonl and test.jsonl in it. But for the last, responses are cut at 32
tokens.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import spearmanr

from benchmarks.harness import Row, seconds_once
from benchmarks.packing import model
from margincast.data import load_pairs
from margincast.features import features_of
from margincast.frozen.tokens import (
    TokenFeatures,
    forecast_tokens,
    head_of,
    linearised_margins,
    response_rates,
    sequence_kernel,
    token_features,
)
from margincast.models.load import default_cache_dir
from margincast.passes.tokenize import Encoding, encode
from margincast.recipe.batches import batch_order
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet, Trajectory
from margincast.runs.save import peak_memory_bytes
from margincast.training.run import train_model

PAIRS, CUT = 64, 32
SETTINGS = Recipe(train="head", beta=0.1, learning_rate=1e-4, max_steps=20, eval_steps=10, seed=0)


def rows() -> Iterator[Row]:
    loaded = model()
    folder = Path(os.environ["MARGINCAST_DATA_DIR"]) / "hh-helpful"
    splits = [load_pairs(str(folder / f"{name}.jsonl"), on_bad_row="skip").pairs[:PAIRS] for name in ("train", "test")]
    train, heldout = map(PairSet, splits)
    encoding = cut(encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer, eos=True, on_bad_row="skip"), CUT)
    features = token_features(loaded, encoding, train, heldout, cache_dir=default_cache_dir())
    unembedding, _ = head_of(loaded)
    yield from whole_data_set()
    yield from linearised(features, (train, heldout), unembedding)
    forecasts: list[Trajectory] = []
    trained: list[Trajectory] = []

    def ours() -> None:
        forecasts.append(
            forecast_tokens(
                *features, (train, heldout), unembedding, SETTINGS,
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
    name = f"head training, {PAIRS} + {PAIRS} pairs, {SETTINGS.steps} steps: margins differ by {max(gaps):.1e}"
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


def linearised(
    features: tuple[TokenFeatures, TokenFeatures], pairs: tuple[PairSet, PairSet], unembedding: torch.Tensor
) -> Iterator[Row]:
    """Where does holding gradients at their start depart from the exact recursion? SGD, three distances."""
    train, heldout = features
    weight, loss = unembedding.to(train.hidden), get_loss("sigmoid", SETTINGS.beta)
    kernels: list[torch.Tensor] = []
    spent = seconds_once(lambda: kernels.extend(sequence_kernel(each, train, weight) for each in features))

    def fast(rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        order = batch_order(train.pairs, 32, SETTINGS.steps, SETTINGS.seed)
        return linearised_margins(kernels[0], kernels[1], SGD(rate), order, loss, SETTINGS.beta)

    unit = float(fast(1e-6)[0][-1].abs().max()) / 1e-6
    for largest in (0.03, 0.3, 3.0):
        rate = largest / unit
        start = time.perf_counter()
        margins = fast(rate)
        again = time.perf_counter() - start
        start = time.perf_counter()
        exact = forecast_tokens(
            train, heldout, pairs, unembedding,
            Recipe(
                train="head", beta=SETTINGS.beta, optimizer=SGD(rate), max_steps=SETTINGS.steps,
                eval_steps=SETTINGS.steps, seed=SETTINGS.seed, max_grad_norm=0.0,
            ), dtype=torch.float32,
        )  # fmt: skip
        peer = time.perf_counter() - start
        for split, mine in zip(("train", "heldout"), margins, strict=True):
            true = getattr(exact, split).margins[-1]
            gap = float((mine[-1] - true).abs().max() / true.abs().max())
            rho = float(spearmanr(mine[-1], true).statistic)
            name = f"kernel, {split} margins up to {float(true.abs().max()):.2g}: off by {gap:.1e}, Spearman {rho:.3f}"
            yield Row(name, f"exact, after {spent:.0f} s for the kernel", None, *3 * [peer / again], "", again, peer)


def whole_data_set() -> Iterator[Row]:
    """`decompose --all` of 500 + 500 pairs of whole responses, features and all, then `forecast` of them and
    `decompose --all` again, whose features are there; each in a process of its own."""
    folder = Path(os.environ["MARGINCAST_DATA_DIR"]) / "hh-helpful"
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        cache.mkdir()
        (cache / "models").symlink_to(default_cache_dir() / "models")
        for command, what, minutes in (
            (("decompose", "--all"), "features and all", 8),
            (("decompose", "--all"), "features kept", 8),
            (("forecast", "--train", "head"), "features kept", 6),
        ):
            out = Path(name) / f"{command[0]} {what}"
            words = [sys.executable, "-m", "margincast", command[0], folder, *command[1:], "--on_bad_row", "skip"]
            words += ["--holdout", 0.5, "--beta", SETTINGS.beta, "--max_steps", SETTINGS.steps, "--eval_steps", 20]
            words += ["--quiet", "--cache_dir", cache, "--out", out]
            subprocess.run([str(word) for word in words], check=True)
            summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
            spent, peak = summary["results"]["seconds"], summary["results"]["peak_memory_bytes"]
            counts = summary["data"]["concepts"].values()
            pairs = " + ".join(str(sum(count[split] for count in counts)) for split in ("train", "heldout"))
            took = f"{spent:.0f} s, {peak / 1e9:.2f} GB at the peak"
            title = f"{' '.join(command)}, {pairs} pairs, {SETTINGS.steps} steps, {what}: {took}"
            time_left, room = 60 * minutes / spent, 2.5e9 / peak
            target = f"{minutes} minutes, 2.5 GB"
            yield Row(title, target, None, time_left, time_left, room, ">= 1", spent, None, peak)


def cut(encoding: Encoding, length: int) -> Encoding:
    """`encoding` with responses of at most `length` tokens."""
    rows = (replace(row, chosen=row.chosen[:length], rejected=row.rejected[:length]) for row in encoding.rows)
    return replace(encoding, rows=tuple(rows))
