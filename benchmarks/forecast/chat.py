"""What does full fine-tuning really do to chat pairs? True runs of responses of many tokens, kept as metrics.

    MARGINCAST_DATA_DIR=... python -m benchmarks.forecast.chat [NAME ...]

A run that is kept is not made again. Kept beside this file, in `chat/`, one JSON a run: settings, held-out margins over
beta at the recorded steps, those of a rehearsal of a tenth of the pairs, seconds. Training is `margincast train`'s.
So that a run takes minutes on two cores, prompts are cut to their last `PROMPT` tokens and responses to their first
`RESPONSE`: what is left is a run like any other, of shorter texts.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy

from benchmarks.packing import model
from margincast.data import load_pairs
from margincast.features import features_of
from margincast.models import LoadedModel
from margincast.models.load import default_cache_dir
from margincast.passes.evaluate import Evaluator
from margincast.passes.tokenize import Encoded, Encoding, encode
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet
from margincast.runs.save import environment
from margincast.runs.store import write_json
from margincast.trained.rehearsal import rehearse, size_of
from margincast.training.trainer import MarginTrainer, PairDataset, arguments, collate

KEPT = Path(__file__).parent / "chat"
DATA = {"hh": ("hh-helpful/train.jsonl", "hh-helpful/test.jsonl"), "dpo_en": ("chat/dpo_en_demo.json", None)}
TRAIN, HELDOUT, PROMPT, RESPONSE = 150, 80, 64, 32
SHARE = 0.1  # of the training's pairs, that a rehearsal takes


@dataclass(frozen=True)
class ChatRun:
    """data: of `DATA`;  part: which pairs are drawn (another `seed` is another batch order over the same ones)"""

    name: str
    data: str
    part: int = 0
    seed: int = 1
    learning_rate: float = 2e-5
    steps: int = 20
    batch: int = 8
    beta: float = 0.1

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            beta=self.beta, learning_rate=self.learning_rate, max_steps=self.steps, seed=self.seed,
            per_device_train_batch_size=self.batch, bf16=True, eval_steps=self.steps // 2, report_to="none",
        )  # fmt: skip

    @property
    def twin(self) -> tuple[object, ...]:
        """What runs have in common that differ by their batch order alone."""
        return tuple(value for name, value in asdict(self).items() if name not in ("name", "seed"))


PLAN = (
    ChatRun("hh-0", "hh"),
    ChatRun("dpo-0", "dpo_en"),
    ChatRun("hh-1", "hh", part=1),
    ChatRun("dpo-1", "dpo_en", part=1),
    ChatRun("hh-0-twin", "hh", seed=2),
    ChatRun("dpo-0-twin", "dpo_en", seed=2),
    ChatRun("hh-1-twin", "hh", part=1, seed=2),
    ChatRun("dpo-1-twin", "dpo_en", part=1, seed=2),
    ChatRun("hh-2", "hh", part=2, learning_rate=1e-5, steps=40),
    ChatRun("dpo-2", "dpo_en", part=2, learning_rate=1e-5, steps=40),
    ChatRun("hh-3", "hh", part=3, batch=16),
    ChatRun("dpo-3", "dpo_en", part=3, batch=16),
)  # parts 0 are what choices were made on


def encoded(data: str, loaded: LoadedModel) -> tuple[Encoding, int]:
    """All usable pairs of `data`, cut, and how many of the first of them are of its training file (0: no such file)."""
    folder = Path(os.environ["MARGINCAST_DATA_DIR"])
    files = [load_pairs(str(folder / name), on_bad_row="skip") for name in DATA[data] if name]
    both = PairSet(tuple(pair for part in files for pair in part))
    encoding = encode(both, loaded.tokenizer, eos=True, on_bad_row="skip")
    rows = tuple(map(_cut, encoding.rows))
    kept = [number for number, row in enumerate(rows) if row.chosen != row.rejected]
    known = {pair.id for pair in files[0]} if len(files) > 1 else set()
    pairs = PairSet(tuple(encoding.pairs[number] for number in kept))
    first = sum(pair.id in known for pair in pairs)
    return Encoding(pairs, tuple(rows[number] for number in kept), True, PROMPT + RESPONSE, 0), first


def _cut(row: Encoded) -> Encoded:
    return Encoded(row.prompt[-PROMPT:], row.chosen[:RESPONSE], row.rejected[:RESPONSE])


def splits_of(run: ChatRun, loaded: LoadedModel) -> tuple[Encoding, PairSet, PairSet]:
    """Parts of data with two files share no pair; those of one file overlap, and each keeps its own splits apart."""
    encoding, first = encoded(run.data, loaded)
    pairs = list(encoding.pairs)
    if first:
        sides = [random.Random(0).sample(side, len(side)) for side in (pairs[:first], pairs[first:])]
        train, heldout = (
            side[run.part * count : (run.part + 1) * count] for side, count in zip(sides, (TRAIN, HELDOUT), strict=True)
        )
        if run.part >= 3:  # what is left, and then from the beginning
            train = (sides[0][3 * TRAIN :] + sides[0])[:TRAIN]
    else:
        drawn = random.Random(run.part).sample(pairs, TRAIN + HELDOUT)
        train, heldout = drawn[:TRAIN], drawn[TRAIN:]
    return encoding, PairSet(tuple(train)), PairSet(tuple(heldout))


class Watch(TrainerCallback):
    """Held-out log-ratios at the start, half way and at the end."""

    def __init__(self, rows: Sequence[Encoded], recipe: Recipe) -> None:
        self.evaluate = Evaluator(rows, packed=True, frozen_backbone=False)
        self.steps = recipe.recorded
        self.ratios: dict[int, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._read(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self._read(kwargs["model"], state.global_step)

    def _read(self, network: Any, step: int) -> None:
        chosen, rejected = self.evaluate(network)
        self.ratios[step] = chosen - rejected


def inputs_of(run: ChatRun, loaded: LoadedModel) -> tuple[Encoding, Features]:
    encoding, train, heldout = splits_of(run, loaded)
    return encoding, features_of(loaded, encoding, train, heldout, cache_dir=default_cache_dir() / "chat-bank")


def make(run: ChatRun, loaded: LoadedModel) -> None:
    """Rehearse and train `run`, keep what both did. `loaded` is left as it is."""
    encoding, features = inputs_of(run, loaded)
    recipe, train = run.recipe, encoding.select(features.train.pairs)
    begun = time.process_time()
    rehearsal = rehearse(loaded, encoding, features, recipe, *size_of(recipe, SHARE), seed=run.seed)
    rehearsed = time.process_time()
    network = copy.deepcopy(loaded.model)
    options = arguments(recipe, default_cache_dir() / "chat-bank" / "state", run.batch, "cpu")
    options.save_strategy = SaveStrategy.NO
    watch = Watch(encoding.select(features.heldout.pairs).rows, recipe)
    reference = features.train.reference_chosen, features.train.reference_rejected
    trainer = MarginTrainer(
        model=network, args=options, train_dataset=PairDataset(train.rows, *reference), data_collator=collate,
        callbacks=[watch], recipe=recipe, packed=True,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    seconds = {"rehearsal": rehearsed - begun, "run": time.process_time() - rehearsed}
    margins = {step: (ratios - watch.ratios[0]).tolist() for step, ratios in watch.ratios.items()}
    write_json(
        KEPT / f"{run.name}.json",
        {
            "settings": asdict(run),
            "heldout_margins_over_beta": {str(step): _rounded(values) for step, values in margins.items()},
            "rehearsal_margins_over_beta": _rounded((rehearsal.heldout / run.beta).tolist()),
            "cpu_seconds": {name: round(value, 1) for name, value in seconds.items()},
            "packages": environment()["packages"],
        },
    )


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.chat", description=__doc__)
    parser.add_argument("names", nargs="*", help="runs to make; all of the plan when none is named")
    wanted = parser.parse_args().names
    runs = [run for run in PLAN if not wanted or run.name in wanted]
    loaded = model()
    for run in runs:
        if not (KEPT / f"{run.name}.json").is_file():
            start = time.perf_counter()
            make(run, loaded)
            print(f"{run.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
