"""One trainer on one shape of model, in a process of its own: `python -m benchmarks.gpu.side SIDE SHAPE`.

For every job a line of JSON with the seconds of its steps, their losses and gradient norms, and the peak memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback, TrainingArguments

from benchmarks.flops import forward_flops
from benchmarks.gpu.tokens import JOBS, MAX_LENGTH, STEPS, VOCABULARY, batches, tokenizer_of_ids
from benchmarks.peers.settings import step_by_step
from benchmarks.peers.turns import own_stdout
from margincast.passes.packing import pack
from margincast.passes.response_pass import packing_problem, response_pass
from margincast.passes.tokenize import Encoded, encode
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet

WARM = 2
BETA, LEARNING_RATE = 0.1, 1e-6
REFERENCES_AT_ONCE = 8


@dataclass(frozen=True)
class Shape:
    """A random Llama. bf16_weights: the weights themselves, where float32 ones with Adam's moments do not fit a card

    batch: pairs of a step where those of the job are too many;  max_length: where rewards are compared to 1e-4,
    float32 sums of thousands of log-probabilities are too coarse
    """

    hidden: int
    layers: int
    inner: int
    heads: int
    vocabulary: int = VOCABULARY
    bf16_weights: bool = False
    batch: int | None = None
    max_length: int = MAX_LENGTH

    def model(self, device: str, attention: str) -> Any:
        config = LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, num_hidden_layers=self.layers,
            intermediate_size=self.inner, num_attention_heads=self.heads, max_position_embeddings=2048,
            tie_word_embeddings=False, eos_token_id=self.vocabulary - 1, pad_token_id=self.vocabulary - 1,
        )  # fmt: skip
        torch.manual_seed(0)
        dtype = torch.bfloat16 if self.bf16_weights else torch.float32
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)


SHAPES = {
    "toy": Shape(64, 4, 128, 4, vocabulary=512, batch=2, max_length=160),
    "1b": Shape(2048, 16, 8192, 16),
    "7b": Shape(4096, 32, 11008, 32, bf16_weights=True),
}


@dataclass
class Measured:
    """Of the steps after `WARM`. distinct, padded: tokens of a step in the mean; flops: of a step, on distinct tokens

    peak: bytes on the device, 0 on a CPU;  failed: why there are no numbers
    """

    job: str
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    distinct: float = 0.0
    padded: float = 0.0
    flops: float = 0.0
    peak: int = 0
    failed: str | None = None

    @property
    def step(self) -> float:
        return median(self.seconds)


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next: batches, both passes and the update."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "grad_norm" in logs:
            self.losses.append(float(logs["loss"]))
            self.norms.append(float(logs["grad_norm"]))


def settings(folder: str, batch: int, shape: Shape, device: str) -> dict[str, Any]:
    precision = {"bf16": device == "cuda" and not shape.bf16_weights, "use_cpu": device == "cpu"}
    return step_by_step(folder, STEPS, batch, LEARNING_RATE) | precision


def measure(side: str, shape: Shape, job: str, device: str) -> Measured:
    """Steps of `job` by `side`: "ours", "trl", "trl-best", "trl-flash" or "packed"."""
    batch = shape.batch or JOBS[job].batch
    tokenizer, pairs = (
        tokenizer_of_ids(shape.vocabulary),
        PairSet(batches(job, shape.vocabulary).pairs[: STEPS * batch]),
    )
    encoding = encode(pairs, tokenizer, eos=True, max_length=shape.max_length, on_bad_row="skip")
    rows, pairs = encoding.rows, encoding.pairs
    model = shape.model(device, "flash_attention_2" if side == "trl-flash" else "sdpa")
    clock, found = Clock(device), Measured(job)
    found.distinct, found.padded, found.flops = counted(model, rows, batch)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        given = settings(folder, batch, shape, device)
        try:
            if side == "ours":
                ours(model, rows, clock, given)
            else:
                trl(side, model, tokenizer, pairs, clock, {**given, "beta": BETA, "max_length": shape.max_length})
        except torch.OutOfMemoryError:
            return Measured(job, failed="out of memory")
    found.seconds = [end - start for start, end in zip(clock.ends[WARM - 1 :], clock.ends[WARM:], strict=False)]
    found.losses, found.norms = clock.losses, clock.norms
    found.peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return found


def counted(model: Any, rows: Sequence[Encoded], batch: int) -> tuple[float, float, float]:
    """Of a step, in the mean: distinct and padded tokens, and operations of a forward and a backward pass."""
    distinct, padded, flops, steps = 0, 0, 0.0, range(0, len(rows), batch)
    for start in steps:
        sequences = [sequence for row in rows[start : start + batch] for sequence in row.inputs]
        predicting = sum(len(row.chosen) + len(row.rejected) for row in rows[start : start + batch])
        trie = pack(sequences)
        distinct += len(trie)
        padded += len(sequences) * (1 + max(map(len, sequences)))
        flops += 3 * forward_flops(model, trie, predicting)
    return distinct / len(steps), padded / len(steps), flops / len(steps)


def ours(model: Any, rows: Sequence[Encoded], clock: Clock, given: dict[str, Any]) -> None:
    """References as the extraction makes them, and the trainer of `margincast train`."""
    from margincast.training.trainer import MarginTrainer, PairDataset, collate

    packed = packing_problem(model, rows) is None
    chosen, rejected = [], []
    with torch.no_grad():
        for start in range(0, len(rows), REFERENCES_AT_ONCE):
            result = response_pass(model, rows[start : start + REFERENCES_AT_ONCE], packed)
            chosen.append(result.chosen.float().cpu())
            rejected.append(result.rejected.float().cpu())
    MarginTrainer(
        model=model,
        args=TrainingArguments(**given, remove_unused_columns=False, dataloader_pin_memory=False),
        train_dataset=PairDataset(rows, torch.cat(chosen), torch.cat(rejected)),
        data_collator=collate,
        callbacks=[clock],
        recipe=Recipe(beta=BETA, learning_rate=LEARNING_RATE),
        packed=packed,
    ).train()


def trl(side: str, model: Any, tokenizer: Any, pairs: PairSet, clock: Clock, given: dict[str, Any]) -> None:
    from benchmarks.peers import trl_training

    trl_training.train(model, tokenizer, pairs, side != "trl", clock, given, packed=side == "packed")


def main() -> None:
    answers, side, shape = own_stdout(), sys.argv[1], SHAPES[sys.argv[2]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if side == "frozen":
        from benchmarks.gpu import frozen

        print(json.dumps(asdict(frozen.measure(sys.argv[2], device))), file=answers, flush=True)
        return
    for job in JOBS:
        print(json.dumps(asdict(measure(side, shape, job, device))), file=answers, flush=True)


if __name__ == "__main__":
    main()
