"""Packed passes on SmolLM2: extraction against one prompt at a time and padded buckets, training against TRL.

Needs $MARGINCAST_PERSONA_DIR, and $MARGINCAST_DATA_DIR with hh-helpful/train.jsonl in it. Extraction is of single-token
responses, as the paper has them; training has TRL's end-of-sequence token and truncation. Trainers run in processes of
their own, the same batches in the same order: `python -m benchmarks.packing SIDE DATA` is one of them.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from benchmarks.flops import forward_flops
from benchmarks.harness import Row, close, compare, seconds, seconds_once
from benchmarks.peers import bucketed, one_at_a_time
from benchmarks.peers.settings import step_by_step
from benchmarks.peers.turns import Side, Turns
from margincast.data import load_pairs
from margincast.features import features_of
from margincast.models import LoadedModel, load_model
from margincast.models.load import default_cache_dir
from margincast.passes.packing import pack
from margincast.passes.response_pass import packing_problem
from margincast.passes.tokenize import Encoded, Encoding, encode
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet
from margincast.training.trainer import MarginTrainer, PairDataset, collate

PERSONAS = "persona:agreeableness,interest-in-art"
SAMPLE = 16  # one prompt at a time is timed on every 16th pair: its time per pair is the same for all of them
BUCKET_TOKENS = 1024  # 256 to 1024 took the same time, 2048 and 4096 up to 1.6 times as long
BETA, LEARNING_RATE, STEPS, SEED = 0.1, 1e-5, 10, 0


@dataclass(frozen=True)
class Job:
    """Training pairs as a benchmark takes them.

    Without checkpointing TRL needed 2.8 MB a padded token on persona:k1: hh-helpful's batch keeps that below 16 GB.
    """

    data: str
    batch: int
    targets: tuple[str, str]


JOBS = {
    "persona": Job("persona:k1", 32, (">= 7", ">= 4.5")),
    "hh": Job("hh-helpful/train.jsonl", 4, (">= 1.8", ">= 1.3")),
}
TRL = {"default": "TRL default, float32", "best": "TRL, reference precomputed, no checkpointing"}


def rows() -> Iterator[Row]:
    yield from extraction()
    for name in JOBS:
        for side in TRL:
            yield from training(name, side)


def model() -> LoadedModel:
    return load_model("smollm2", cache_dir=Path(os.environ.get("MARGINCAST_CACHE_DIR", default_cache_dir())))


def personas(data: str) -> PairSet:
    return load_pairs(data, persona_dir=Path(os.environ["MARGINCAST_PERSONA_DIR"]))


def extraction() -> Iterator[Row]:
    loaded = model()
    encoding = encode(personas(PERSONAS), loaded.tokenizer, eos=False)
    work = Extraction(loaded, encoding)
    few = encoding.rows[::SAMPLE]
    hidden, logps = work.ours()
    yield compare(
        f"extraction, {len(encoding.rows)} pairs ({work.distinct} distinct of {work.prompted} tokens)",
        "one prompt at a time, all hidden states",
        work.ours,
        lambda: one_at_a_time.extract(loaded.model, few),
        ">= 5",
        agrees=same((hidden[::SAMPLE], logps[::SAMPLE]), one_at_a_time.extract(loaded.model, few)),
        repeats=3,
        scale=len(encoding.rows) / len(few),
    )
    yield compare(
        f"extraction, {len(encoding.rows)} pairs ({work.distinct} distinct of {work.padded} padded tokens)",
        f"padded buckets of {BUCKET_TOKENS} tokens",
        work.ours,
        lambda: bucketed.extract(loaded.model, encoding.rows, BUCKET_TOKENS),
        ">= 1.8",
        agrees=same((hidden, logps), bucketed.extract(loaded.model, encoding.rows, BUCKET_TOKENS)),
        repeats=5,
    )
    yield against_ceiling(work, 5)


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    """Whether hidden states and log-probabilities agree."""
    return all(close(mine, other, 1e-3) for mine, other in zip(ours, theirs, strict=True))


class Extraction:
    """Extraction of `encoding` as the library does it, from token ids to cached features; and what it has to compute.

    distinct: positions of the prefix trie of all prompts; prompted, padded: tokens of the prompts, and of the buckets
    """

    def __init__(self, loaded: LoadedModel, encoding: Encoding) -> None:
        self.loaded, self.encoding = loaded, encoding
        pairs = encoding.pairs
        self.train, self.heldout = pairs[:-1], pairs[-1:]
        prompts = [row.prompt for row in encoding.rows]
        self.trie = pack(prompts)
        self.distinct = len(self.trie)
        self.prompted = sum(map(len, prompts))
        widths = [[len(prompts[index]) for index in batch] for batch in bucketed.buckets(encoding.rows, BUCKET_TOKENS)]
        self.padded = sum(len(batch) * max(batch) for batch in widths)

    def ours(self) -> tuple[Tensor, Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            features = features_of(self.loaded, self.encoding, self.train, self.heldout, cache_dir=Path(folder))
        both = (features.train, features.heldout)
        logps = [torch.stack([split.reference_chosen, split.reference_rejected], dim=1) for split in both]
        return torch.cat([split.hidden for split in both]), torch.cat(logps)

    def flops(self) -> float:
        """Of one forward pass, with the logits of the distinct positions that predict a response."""
        return forward_flops(self.loaded.model, self.trie, len({int(path[-1]) for path in self.trie.paths}))


def against_ceiling(work: Extraction, repeats: int) -> Row:
    """Operations per second, those of distinct tokens alone, over those of a large product in the same minute."""
    square, flops = torch.randn(2048, 2048), work.flops()
    ratios, times, bests = [], [], []
    for _ in range(repeats):
        product = min(seconds(lambda: square @ square, 5))
        times.append(seconds_once(work.ours))
        bests.append(flops * product / (2 * 2048**3))
        ratios.append(bests[-1] / times[-1])
    ratios.sort()
    name = f"extraction, {flops / median(times) / 1e9:.0f} GFlop/s of distinct tokens"
    peer = f"float32 product 2048^3, {flops / median(bests) / 1e9:.0f} GFlop/s"
    return Row(name, peer, None, median(ratios), ratios[0], ratios[-1], ">= 0.55", median(times), median(bests))


def training(name: str, side: str) -> Iterator[Row]:
    """A step of full fine-tuning, then the peak memory of the two processes (the ratio is ours over theirs)."""
    job, target = JOBS[name], dict(zip(TRL, JOBS[name].targets, strict=True))[side]
    command = [sys.executable, "-m", "benchmarks.packing"]
    row = beside(
        f"training step, {job.data} batch {job.batch} ({token_counts(job)} tokens)",
        TRL[side],
        ([*command, "ours", name], [*command, side, name]),
        target,
    )
    yield row
    ratio = (row.peak_memory_ours or 0) / (row.peak_memory_peer or 1)
    yield replace(
        row, name=f"peak memory, {job.data} batch {job.batch}", target="<= 1",
        ratio_median=ratio, ratio_low=ratio, ratio_high=ratio,
    )  # fmt: skip


def beside(name: str, peer: str, commands: tuple[list[str], list[str]], target: str) -> Row:
    """Steps of two trainers in turn, ours first, whether their losses agree, and the peak memory of each."""
    ours, theirs = map(Side, commands)
    row = compare(name, peer, ours.step, theirs.step, target, agrees=None, repeats=STEPS - 1)
    ours.close()
    theirs.close()
    losses = zip(ours.losses, theirs.losses, strict=True)
    agrees = all(abs(mine - other) <= 1e-4 * abs(other) for mine, other in losses)
    return replace(row, agrees=agrees, peak_memory_ours=ours.peak, peak_memory_peer=theirs.peak)


def training_rows(job: Job, loaded: LoadedModel) -> Encoding:
    """The pairs of `STEPS` batches, drawn at random once, as TRL encodes them."""
    local = Path(os.environ["MARGINCAST_DATA_DIR"]) / job.data if job.data.endswith(".jsonl") else None
    pairs = personas(job.data) if local is None else load_pairs(str(local), on_bad_row="skip")
    drawn = random.Random(SEED).sample(pairs.pairs, 2 * STEPS * job.batch)
    encoding = encode(PairSet(tuple(drawn)), loaded.tokenizer, eos=True, on_bad_row="skip")
    return encoding.select(encoding.pairs[: STEPS * job.batch])


def token_counts(job: Job) -> str:
    """Mean tokens of a batch, distinct and padded as TRL pads it."""
    batches = training_rows(job, model()).rows
    counts = [token_count(batches[start : start + job.batch]) for start in range(0, len(batches), job.batch)]
    distinct, padded = (sum(side) / len(counts) for side in zip(*counts, strict=True))
    return f"{distinct:.0f} distinct of {padded:.0f} padded"


def token_count(batch: Sequence[Encoded]) -> tuple[int, int]:
    sequences = [sequence for row in batch for sequence in row.inputs]
    return len(pack(sequences)), len(sequences) * (1 + max(map(len, sequences)))


def train(side: str, job: Job, *, packed_trl: bool = False) -> None:
    """Train in this process, a step at a time as asked on stdin. side: "ours", or one of `TRL`, whose trainer may be
    `PackedDPOTrainer`."""
    turns, loaded = Turns(), model()
    encoding = training_rows(job, loaded)
    with tempfile.TemporaryDirectory() as folder:
        settings = step_by_step(folder, STEPS, job.batch, LEARNING_RATE) | {"bf16": False, "use_cpu": True}
        if side == "ours":
            train_ours(loaded, encoding, turns, settings)
        else:
            from benchmarks.peers import trl_training

            best = side == "best"
            settings["beta"] = BETA
            trl_training.train(loaded.model, loaded.tokenizer, encoding.pairs, best, turns, settings, packed_trl)


def train_ours(loaded: LoadedModel, encoding: Encoding, turns: Turns, settings: dict[str, Any]) -> None:
    pairs = encoding.pairs
    with tempfile.TemporaryDirectory() as folder:
        features = features_of(loaded, encoding, pairs, pairs[:1], cache_dir=Path(folder))
    MarginTrainer(
        model=loaded.model,
        args=TrainingArguments(**settings, remove_unused_columns=False, dataloader_pin_memory=False),
        train_dataset=PairDataset(encoding.rows, features.train.reference_chosen, features.train.reference_rejected),
        data_collator=collate,
        callbacks=[turns],
        recipe=Recipe(beta=BETA, learning_rate=LEARNING_RATE),
        packed=packing_problem(loaded.model, encoding.rows) is None,
    ).train()


if __name__ == "__main__":
    train(sys.argv[1], JOBS[sys.argv[2]])
