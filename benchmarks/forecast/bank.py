"""What does full fine-tuning really do? Runs of `plan`, one after the other; the margins of each are kept.

    MARGINCAST_PERSONA_DIR=... python -m benchmarks.forecast.bank [NAME ...]

A run that is kept is not made again; an interrupted one is begun anew. Kept beside this file, in `bank/`: settings,
metrics and margins, and the margins of a rehearsal with a tenth of the pairs. Kept in the cache, and made again when
missing: features before training, of inner layers too.
Training is `margincast train`'s: its trainer, batches and settings, without checkpoints.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from benchmarks.forecast.plan import PLAN, Run, named
from benchmarks.packing import model, personas
from margincast.features import features_of
from margincast.models import LoadedModel
from margincast.models.adapter import add_adapter
from margincast.models.load import default_cache_dir
from margincast.passes.plan import packs_of
from margincast.passes.response_pass import response_pass
from margincast.passes.tokenize import Encoded, Encoding, encode
from margincast.recipe.recipe import Recipe
from margincast.records import Features, Pair, PairSet
from margincast.runs.save import environment
from margincast.runs.store import write_json, write_tensors
from margincast.trained.rehearsal import rehearse, size_of
from margincast.training.trainer import MarginTrainer, PairDataset, arguments, collate, share

BANK = Path(__file__).parent / "bank"
SHARE = 0.1  # of the training's pairs, that a rehearsal takes
SPLIT_SEED = 1  # of all runs: another `seed` is another batch order over the same pairs


def features_path(run: Run) -> Path:
    """Where features before training are, and what inner layers put out."""
    return default_cache_dir() / "bank" / f"{run.name}.safetensors"


def pairs_of(run: Run) -> tuple[PairSet, PairSet]:
    """Training and held-out pairs of `run`; flipped labels are in the training pairs alone."""
    everything = personas(f"persona:{','.join(run.concepts)}")
    train: list[Pair] = []
    heldout: list[Pair] = []
    for concept, count in zip(run.concepts, run.training_pairs, strict=True):
        drawn = random.Random(f"{SPLIT_SEED}/{concept}")
        members = [pair for pair in everything if pair.concept == concept]
        drawn.shuffle(members)
        heldout += members[: run.heldout_pairs]
        rest = members[run.heldout_pairs :]
        if run.yes is None:
            mine = rest[:count]
        else:
            wanted = round(run.yes * count)
            yes = [pair for pair in rest if prefers_yes(pair)]
            no = [pair for pair in rest if not prefers_yes(pair)]
            mine = yes[:wanted] + no[: count - wanted]
        flip = set(drawn.sample(range(len(mine)), round(run.flipped * len(mine))))
        train += [
            replace(pair, chosen=pair.rejected, rejected=pair.chosen) if index in flip else pair
            for index, pair in enumerate(mine)
        ]
    return PairSet(tuple(train)), PairSet(tuple(heldout))


def prefers_yes(pair: Pair) -> bool:
    return str(pair.chosen).strip().lower().startswith("yes")


@torch.no_grad()
def read(network: Any, rows: Sequence[Encoded]) -> Tensor:
    """Log-ratio of chosen to rejected of `rows`, (pairs,) float64."""
    network.eval()
    logratio = torch.zeros(len(rows), dtype=torch.float64)
    for members in packs_of(network, [row.inputs for row in rows]):
        result = response_pass(network, [rows[index] for index in members])
        logratio[members] = (result.chosen - result.rejected).double()
    return logratio


class Watch(TrainerCallback):
    """Reads held-out pairs at `run.recorded`, and training pairs where the pilot ends."""

    def __init__(self, run: Run, train: Sequence[Encoded], heldout: Sequence[Encoded]) -> None:
        self.run, self.train, self.heldout = run, train, heldout
        self.seen: dict[int, Tensor] = {}
        self.pilot = torch.zeros(0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._read(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.run.recorded:
            self._read(kwargs["model"], state.global_step)

    def _read(self, network: Any, step: int) -> None:
        self.seen[step] = read(network, self.heldout)
        if step == self.run.pilot:
            self.pilot = read(network, self.train)
        network.train()


class BatchTrainer(MarginTrainer):
    """Keeps the margins of every batch before its update, in its order: the trainer has computed them anyway."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batches: list[Tensor] = []
        inner = self.recipe.loss

        def value(margins: Tensor) -> Tensor:
            self.batches.append(torch.empty_like(margins.detach()).index_copy(0, self.order, margins.detach()))
            return inner.value(margins)

        self.recipe = replace(self.recipe, loss_type=replace(inner, value=value))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        self.order = torch.tensor(share(inputs["pairs"], 0, 1))  # the pass takes pairs sorted by their prompts
        return super().compute_loss(model, inputs, *args, **kwargs)


def make(run: Run, loaded: LoadedModel) -> None:
    """Train `run` and keep what it did. `loaded` is left as it is."""
    start = time.perf_counter()
    encoding, features = inputs_of(run, loaded)
    train, heldout = features.train.pairs, features.heldout.pairs
    train_rows, heldout_rows = (encoding.select(part).rows for part in (train, heldout))
    settings = settings_of(run)
    network = copy.deepcopy(loaded.model)
    if run.train == "lora":
        network = add_adapter(network, settings)
    folder = default_cache_dir() / "bank" / "state"
    options = arguments(settings, folder, run.batch, "cpu")
    options.save_strategy = SaveStrategy.NO
    options.optim = OptimizerNames.ADAMW_TORCH_FUSED  # the same update, in one pass over the weights
    watch = Watch(run, train_rows, heldout_rows)
    reference = features.train.reference_chosen, features.train.reference_rejected
    trainer = BatchTrainer(
        model=network, args=options, train_dataset=PairDataset(train_rows, *reference), data_collator=collate,
        callbacks=[watch], recipe=settings, packed=True,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    begun = time.perf_counter()
    trainer.train()
    seconds = {"before": begun - start, "run": time.perf_counter() - begun}
    steps = sorted(watch.seen)
    logratios = torch.stack([watch.seen[step] for step in steps])
    margins = run.beta * (logratios - logratios[0])
    index = {concept: number for number, concept in enumerate(run.concepts)}
    tensors = {
        "steps": torch.tensor(steps, dtype=torch.int16),
        # Margins over beta: in nats, which float16 holds whatever beta is.
        "heldout": (margins / run.beta).half(),
        "batches": torch.nn.utils.rnn.pad_sequence(
            [(batch / run.beta).half() for batch in trainer.batches], True, float("nan")
        ),
        "gradient_norm": torch.tensor([row["grad_norm"] for row in trainer.state.log_history if "loss" in row]),
        "pilot_train": (watch.pilot - (reference[0] - reference[1])).half(),
        "train_reference": (reference[0] - reference[1]).half(),
        "heldout_reference": logratios[0].half(),
        "train_yes": torch.tensor([prefers_yes(pair) for pair in train], dtype=torch.uint8),
        "heldout_yes": torch.tensor([prefers_yes(pair) for pair in heldout], dtype=torch.uint8),
        "train_concept": torch.tensor([index[pair.concept] for pair in train], dtype=torch.uint8),
        "heldout_concept": torch.tensor([index[pair.concept] for pair in heldout], dtype=torch.uint8),
    }
    write_tensors(BANK / f"{run.name}.safetensors", tensors)
    final = margins[-1]
    concept = tensors["heldout_concept"]
    metrics = {
        name: {
            "heldout_accuracy": float((final[concept == number] > 0).double().mean()),
            "heldout_margin": float(final[concept == number].mean()),
        }
        for name, number in index.items()
    }
    write_json(
        BANK / f"{run.name}.json",
        {"settings": asdict(run), "metrics": metrics, "seconds": seconds, "packages": environment()["packages"]},
    )


def settings_of(run: Run) -> Recipe:
    return Recipe(
        train=run.train, beta=run.beta, learning_rate=run.learning_rate, max_steps=run.steps, seed=run.seed,
        per_device_train_batch_size=run.batch, bf16=run.bf16,
    )  # fmt: skip


def keep_features(run: Run, loaded: LoadedModel) -> None:
    _, features = inputs_of(run, loaded)
    tensors: dict[str, Tensor] = {}
    for name, split in (("train", features.train), ("heldout", features.heldout)):
        assert split.layers is not None
        tensors |= {name: split.hidden, f"layers_{name}": split.layers.half()}
    write_tensors(features_path(run), tensors)


def rehearsal_of(run: Run) -> Path:
    return BANK / f"{run.name}.rehearsal.safetensors"


def make_rehearsal(run: Run, loaded: LoadedModel) -> None:
    """Rehearse `run` with a tenth of its pairs, and keep the held-out margins over beta."""
    start = time.process_time()
    encoding, features = inputs_of(run, loaded)
    settings = replace(settings_of(run), bf16=True)
    done = rehearse(loaded, encoding, features, settings, *size_of(settings, SHARE))
    tensors = {"heldout": (done.heldout / run.beta).half(), "pairs": torch.tensor(done.pairs)}
    write_tensors(rehearsal_of(run), tensors, {"cpu_seconds": f"{time.process_time() - start:.0f}"})


def inputs_of(run: Run, loaded: LoadedModel) -> tuple[Encoding, Features]:
    train, heldout = pairs_of(run)
    encoding = encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer, eos=False)
    return encoding, features_of(loaded, encoding, train, heldout, cache_dir=default_cache_dir() / "bank", layers=True)


def kept(run: Run) -> bool:
    return (BANK / f"{run.name}.json").is_file()


def whole(run: Run) -> bool:
    """Whether nothing of `run` is left to make."""
    return kept(run) and rehearsal_of(run).is_file() and features_path(run).is_file()


def load(run: Run) -> dict[str, Tensor]:
    """What is kept of `run`: margins over beta and labels, and with the prefix `features_` what the cache
    has."""
    tensors = load_file(BANK / f"{run.name}.safetensors")
    return tensors | {f"features_{name}": value.float() for name, value in load_file(features_path(run)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.bank", description=__doc__)
    parser.add_argument("names", nargs="*", help="runs to make; all of the plan when none is named")
    wanted = parser.parse_args().names or [run.name for run in PLAN]
    runs = [run for run in named(wanted) if not whole(run)]
    loaded = model() if runs else None
    for number, run in enumerate(runs):
        start = time.perf_counter()
        assert loaded is not None
        if not features_path(run).is_file():
            keep_features(run, loaded)
        if not rehearsal_of(run).is_file():
            make_rehearsal(run, loaded)
        if not kept(run):
            make(run, loaded)
        load_now = os.getloadavg()[0]
        print(
            f"{number + 1}/{len(runs)} {run.name} {time.perf_counter() - start:.0f} s, load {load_now:.1f}", flush=True
        )


if __name__ == "__main__":
    main()
