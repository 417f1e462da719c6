"""What do true runs on chat pairs say of planted flips, and does leaving out harmful pairs help them?

    python -m benchmarks.attribution.true_runs                          the table, after the runs that are not kept yet
    python -m benchmarks.attribution.true_runs "hh-helpful:0:flipped"   some runs, a JSON line each

DPO of all weights of SmolLM2: 60 steps of AdamW at 1e-5, beta .1, batches of 8, mixed precision. Prompts keep their
last tokens and responses their first (`CUTS`), and `HELDOUT` held-out pairs are looked at: a run then takes some 14
minutes of one core that others use too. An arm is "flipped" or "clean", with one of `OUT` after it. What a run did is
kept in the cache: a second call reads it, and an interrupted one goes on after it. Needs $MARGINCAST_DATA_DIR, as
`benchmarks.attribution.chat` does.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache as once
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.stats import sem, t
from torch import Tensor

from benchmarks.attribution.chat import SETS, SHARE, features_of, turned, with_flips
from benchmarks.attribution.flips import auroc
from benchmarks.attribution.planted import cache, drawn
from benchmarks.harness import Row
from benchmarks.packing import model
from margincast.diagnose import find_issues
from margincast.features import features_of as pair_features
from margincast.features.positions import Positions
from margincast.passes.tokenize import Encoding, encode
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet
from margincast.runs.store import key_of, write_tensors
from margincast.training.run import train_model

RUN = Recipe(beta=0.1, learning_rate=1e-5, max_steps=60, eval_steps=60, per_device_train_batch_size=8, bf16=True)
CUTS = {"hh-helpful": (32, 32), "dpo_en": (32, 32)}  # tokens of a prompt, from its end, and of a response
SEEDS, ORDER, HELDOUT = (0, 1, 2), 100, 150
OUT = ("", ", random out", ", harm out")  # of an arm, after "flipped" or "clean": which tenth is left out


@dataclass(frozen=True)
class Outcome:
    """Margins after the run: of the training pairs where all of them were trained on, else of none, and held out."""

    train: Tensor
    heldout: Tensor
    seconds: float

    @property
    def margin(self) -> float:
        return float(self.heldout.mean())

    @property
    def accuracy(self) -> float:
        return float((self.heldout > 0).double().mean())


@once
def read(data: str) -> tuple[PairSet, PairSet, int]:
    return SETS[data][0](Path(os.environ["MARGINCAST_DATA_DIR"]))


@once
def positions_of(data: str) -> Positions:
    return features_of(*read(data))


def scored_by_others(data: str) -> Positions:
    """With the held-out pairs that no run is judged by: harm looks at the labels of those it is given."""
    positions = positions_of(data)
    others = torch.arange(HELDOUT, len(positions.heldout_pairs))
    return replace(positions, heldout=positions.heldout.select(others), heldout_pairs=positions.heldout_pairs[HELDOUT:])


def arm_pairs(data: str, seed: int, arm: str) -> PairSet:
    """The pairs that a run trains on. Random pairs are others by every seed; harmful ones depend on the flips alone."""
    labels, _, out = arm.partition(", ")
    pairs, _, _ = read(data)
    flips = drawn(len(pairs), SHARE, seed) if labels == "flipped" else torch.zeros(len(pairs), dtype=torch.bool)
    removed = torch.zeros(len(pairs), dtype=torch.bool)
    if out == "random out":
        removed = drawn(len(pairs), SHARE, 1000 + seed)
    elif out == "harm out":
        positions, _ = with_flips(scored_by_others(data), flips)
        scores = torch.tensor([row["harm_score"] for row in find_issues(positions).issues])
        removed[scores.argsort(descending=True, stable=True)[: round(SHARE * len(pairs))]] = True
    return PairSet(
        tuple(
            turned(pair) if flip else pair for pair, flip, gone in zip(pairs, flips, removed, strict=True) if not gone
        )
    )


def outcome(data: str, seed: int, arm: str) -> Outcome:
    """Of one run, made unless it is kept."""
    train, heldout = arm_pairs(data, seed, arm), PairSet(read(data)[1].pairs[:HELDOUT])
    # Not the seed of the flips: batches are drawn by the same permutation, and would take all flipped pairs first.
    settings = replace(RUN, seed=ORDER + seed, record_train=16 if "out" in arm else 0)
    where = cache() / "true-runs" / key_of([train.fingerprint, heldout.fingerprint, CUTS[data], asdict(settings)])[:16]
    kept = where / "result.safetensors"
    if not kept.is_file():
        loaded = model()
        loaded = replace(loaded, model=copy.deepcopy(loaded.model))
        encoding = cut(encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer, max_length=8192), *CUTS[data])
        features = pair_features(loaded, encoding, train, heldout, cache_dir=cache(), layers=False)
        start = time.perf_counter()
        run = train_model(loaded, encoding, features, settings, where / "run", save_model=False)
        seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        recorded = run.train.margins[-1] if settings.record_train == 0 else torch.empty(0)
        write_tensors(kept, {"train": recorded, "heldout": run.heldout.margins[-1], "seconds": seconds})
        shutil.rmtree(where / "run")
    result = load_file(kept)
    return Outcome(result["train"], result["heldout"], float(result["seconds"][0]))


def cut(encoding: Encoding, prompt: int, response: int) -> Encoding:
    """With the last tokens of every prompt and the first of every response."""
    rows = (
        replace(row, prompt=row.prompt[-prompt:], chosen=row.chosen[:response], rejected=row.rejected[:response])
        for row in encoding.rows
    )
    return replace(encoding, rows=tuple(rows))


def rows() -> Iterator[Row]:
    """AUROC of implicit margins beside that of `mislabel_score`, and what arms do; 95% intervals of Student's t."""
    for data in CUTS:
        margins = {seed: outcome(data, seed, "flipped").train for seed in SEEDS}
        areas = [auroc(drawn(len(m), SHARE, seed).numpy(), -m.numpy()) for seed, m in margins.items()]
        yield _row(f"{data}, flips: auroc", "implicit margin of a true run", areas)
    for labels in ("flipped", "clean"):
        known = {out: [outcome("hh-helpful", seed, labels + out) for seed in SEEDS] for out in OUT}
        for measure in ("accuracy", "margin"):
            of = {out: np.array([getattr(each, measure) for each in outcomes]) for out, outcomes in known.items()}
            for out, values in of.items():
                yield _row(f"hh-helpful, {labels}{out}: held-out {measure}", "true run", values)
            gain = of[", harm out"] - of[", random out"]
            yield _row(f"hh-helpful, {labels}: held-out {measure}", "harm out - random out", gain)


def _row(name: str, way: str, values: Sequence[float] | NDArray[np.float64]) -> Row:
    middle = float(np.mean(values))
    half = float(sem(values) * t.ppf(0.975, np.size(values) - 1))
    return Row(name, way, None, middle, middle - half, middle + half, "", float("nan"))


def line(data: str, seed: int, arm: str) -> str:
    found = outcome(data, seed, arm)
    row = {
        "data": data,
        "seed": seed,
        "arm": arm,
        "heldout_pairs": len(found.heldout),
        "accuracy": found.accuracy,
        "margin": found.margin,
        "seconds": found.seconds,
    }
    return json.dumps(row)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        data, seed, arm = each.split(":")
        print(line(data, int(seed), arm), flush=True)
    if len(sys.argv) == 1:
        for row in rows():
            print(row.line(), flush=True)
