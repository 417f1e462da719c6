"""Multi-token forecasts on hh-helpful: the full-matrix recursion beside real training of the unembedding, the kernel of
sequence margins beside the recursion, and what `decompose --all` and `forecast` of 500 + 500 whole pairs take.

Needs $MARGINCAST_DATA_DIR with hh-helpful/train.jsonl and test.jsonl in it. But for the last, responses are cut at 32
tokens.

`--pairs N` takes the first N pairs of each file, and their rows say so. What the commands on whole responses gave is
kept in build/benchmarks/tokens-N, features and all: an interrupted run goes on there. Take the folder
away to measure anew.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import spearmanr

from benchmarks.harness import Row, close, compare, seconds_once
from benchmarks.packing import model
from margincast.data import load_pairs
from margincast.features import features_of
from margincast.frozen.attribution.of_pair import PairAttribution
from margincast.frozen.tokens import (
    TokenFeatures,
    forecast_tokens,
    head_of,
    linearised_margins,
    response_rates,
    sequence_kernel,
    token_features,
)
from margincast.frozen.tokens.decomposition import along, pull, velocity
from margincast.frozen.tokens.forecast import TokenForecast
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
ALL = 500  # pairs of each file
TARGETS = 8
BY_AUTOGRAD = 4  # pairs, each a backward pass of its own, that stand for all
KEPT = Path("build") / "benchmarks"
SETTINGS = Recipe(train="head", beta=0.1, learning_rate=1e-4, max_steps=20, eval_steps=10, seed=0)


def rows(pairs: int = ALL) -> Iterator[Row]:
    yield from whole_data_set(pairs)
    loaded = model()
    folder = Path(os.environ["MARGINCAST_DATA_DIR"]) / "hh-helpful"
    few = min(PAIRS, pairs)
    splits = [load_pairs(str(folder / f"{name}.jsonl"), on_bad_row="skip").pairs[:few] for name in ("train", "test")]
    train, heldout = map(PairSet, splits)
    encoding = cut(encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer, eos=True, on_bad_row="skip"), CUT)
    features = token_features(loaded, encoding, train, heldout, cache_dir=default_cache_dir())
    unembedding, _ = head_of(loaded)
    yield attributed(features, (train, heldout), unembedding)
    yield by_autograd(features, unembedding)
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
    name = (
        f"head training, {len(train)} + {len(heldout)} pairs, {SETTINGS.steps} steps: margins differ by {max(gaps):.1e}"
    )
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
            ratio = peer / again
            yield Row(name, f"exact, after {spent:.0f} s for the kernel", None, ratio, ratio, ratio, "", again, peer)


def attributed(
    features: tuple[TokenFeatures, TokenFeatures], pairs: tuple[PairSet, PairSet], unembedding: torch.Tensor
) -> Row:
    """Contributions to several margins beside the forecast that they are of, in turn."""
    forecasts: list[TokenForecast] = []
    found: list[PairAttribution] = []

    def forecast() -> None:
        forecasts.append(forecast_tokens(*features, pairs, unembedding, SETTINGS, dtype=torch.float32))

    def attribution() -> None:
        wanted = [forecasts[-1].target(pair) for pair in range(TARGETS - 1)]
        found.extend(forecasts[-1].attributions([*wanted, forecasts[-1].target()]))

    first, ours = seconds_once(forecast), seconds_once(attribution)
    gaps = [abs(float(each.values.sum()) + each.start - each.margin) for each in found]
    agrees = max(gaps) <= 1e-4 * max(abs(each.margin) for each in found)
    allowed = 2 + TARGETS / 2
    room = allowed * first / ours
    name = f"attribution to {TARGETS} margins, {len(pairs[0])} + {len(pairs[1])} pairs: {ours / first:.2f} forecasts"
    return Row(name, f"{allowed:g} forecasts", agrees, room, room, room, ">= 1", ours, first, peak_memory_bytes())


def by_autograd(features: tuple[TokenFeatures, TokenFeatures], unembedding: torch.Tensor) -> Row:
    """Products of every training pair's gradient with that of the mean held-out margin, at W0, beside a backward pass
    for each pair."""
    train, heldout = features
    weight, loss = unembedding.to(train.hidden), get_loss("sigmoid", SETTINGS.beta)
    aim = velocity(heldout, heldout.sign * (SETTINGS.beta / heldout.pairs), weight)
    few = torch.arange(min(BY_AUTOGRAD, train.pairs))

    def ours() -> torch.Tensor:
        pulls = pull(train, loss, SETTINGS.beta, train.hidden.new_zeros(train.pairs))
        pulls = pulls * along(train, [aim], weight)[0]
        return pulls.new_zeros(train.pairs).index_add_(0, train.pair, pulls)

    def theirs() -> torch.Tensor:
        moving, products = weight.clone().requires_grad_(), []
        for pair in few:
            one = train.select(pair[None])
            logps = torch.log_softmax(one.hidden @ moving.T, 1).gather(1, one.target[:, None])[:, 0]
            # Its reference is its value: the margin at W0 is 0.
            rewards = SETTINGS.beta * one.per_response(logps - logps.detach())
            value = loss.value(rewards[:, 0] - rewards[:, 1]).sum() / train.pairs
            (gradient,) = torch.autograd.grad(value, moving)
            products.append(-(gradient * aim).sum())
        return torch.stack(products)

    agrees = close(ours()[few], theirs(), 1e-4)
    name = f"gradients of {train.pairs} pairs times one direction"
    scale = train.pairs / len(few)
    return compare(name, "autograd, pair by pair", ours, theirs, ">= 1", agrees=agrees, repeats=3, scale=scale)


def whole_data_set(pairs: int) -> Iterator[Row]:
    """`forecast` of whole responses, features and all, then again and `decompose --all`, whose features are there; each
    in a process of its own. What they gave is kept, for a run that goes on."""
    seconds: dict[tuple[str, str], float] = {}
    kept = KEPT / f"tokens-{pairs}"
    data, cache = kept / "data", kept / "cache"
    data.mkdir(parents=True, exist_ok=True)
    cache.mkdir(exist_ok=True)
    if not (cache / "models").exists():
        (cache / "models").symlink_to(default_cache_dir() / "models")
    for file in ("train.jsonl", "test.jsonl"):
        source = Path(os.environ["MARGINCAST_DATA_DIR"]) / "hh-helpful" / file
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:pairs]
        (data / file).write_text("".join(lines), encoding="utf-8")
    for command, what, minutes in (
        (("forecast", "--train", "head"), "features and all", 6),
        (("forecast", "--train", "head"), "features kept", 6),
        (("decompose", "--all"), "features kept", 8),
    ):
        out = kept / f"{command[0]} {what}"
        if not (out / "summary.json").is_file():
            shutil.rmtree(out, ignore_errors=True)  # of a run that was interrupted
            words = [sys.executable, "-m", "margincast", command[0], data, *command[1:], "--on_bad_row", "skip"]
            words += ["--beta", SETTINGS.beta, "--max_steps", SETTINGS.steps, "--eval_steps", SETTINGS.steps]
            words += ["--quiet", "--cache_dir", cache, "--out", out]
            subprocess.run([str(word) for word in words], check=True)
        results = json.loads((out / "summary.json").read_text(encoding="utf-8"))["results"]
        spent, peak = results["seconds"], results["peak_memory_bytes"]
        seconds[command[0], what] = spent
        whole = f"{pairs} + {pairs} pairs" if pairs >= ALL else f"{pairs} + {pairs} pairs of {ALL} + {ALL}, A FRACTION"
        took = f"{spent:.0f} s, {peak / 1e9:.2f} GB at the peak"
        title = f"{' '.join(command)}, {whole}, {SETTINGS.steps} steps, {what}: {took}"
        # Steps are as many of any number of pairs: a fraction has no time to keep, only its memory.
        time_left, room = 60 * minutes / spent, 2.5e9 / peak
        agrees = bool(time_left >= 1 and room >= 1) if pairs >= ALL else None
        yield Row(title, f"{minutes} minutes, 2.5 GB", agrees, time_left, time_left, room, ">= 1", spent, None, peak)
    kept_seconds = seconds["decompose", "features kept"]
    first = kept_seconds + seconds["forecast", "features and all"] - seconds["forecast", "features kept"]
    title = f"decompose --all, {whole}, with what the features took forecast: {first:.0f} s"
    agrees = None if pairs < ALL else first <= 480
    yield Row(title, "8 minutes", agrees, 480 / first, 480 / first, 480 / first, ">= 1", first)


def cut(encoding: Encoding, length: int) -> Encoding:
    """`encoding` with responses of at most `length` tokens."""
    rows = (replace(row, chosen=row.chosen[:length], rejected=row.rejected[:length]) for row in encoding.rows)
    return replace(encoding, rows=tuple(rows))
