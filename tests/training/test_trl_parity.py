"""Is a step of ours a step of TRL's DPOTrainer? The same batch, loss, rewards, log-probabilities and gradient norm."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.features import features_of
from margincast.models import LoadedModel
from margincast.models.adapter import add_adapter
from margincast.passes.tokenize import encode
from margincast.recipe.recipe import Recipe
from margincast.records import Pair, PairSet
from margincast.training.run import train_model
from tests.tiny import tiny_loaded

STEPS, BATCH, LEARNING_RATE, BETA, SEED = 4, 4, 1e-3, 0.1, 11
NAMES = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


def some_pairs(count: int) -> PairSet:
    """Pairs whose responses differ in length and share openings."""
    words = ("good", "weather", "a long answer with good words", "number 3", "What would you say", "the question is")
    return PairSet(
        tuple(
            Pair(
                id=f"p:{index}",
                concept="c",
                prompt=f"The answer to the question number {index} is",
                chosen=f" {words[index % 6]} {words[index % 4]}",
                rejected=f" {words[(index + 1) % 6]}",
                source="p",
                line=index + 1,
            )
            for index in range(count)
        )
    )


def train_ours(loaded: LoadedModel, pairs: PairSet, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """The rows of `train_log.jsonl` of a run of ours on all of `pairs` (two more are held out)."""
    import json

    heldout = PairSet(tuple(Pair(f"h:{i}", "c", f"Another {i}", " good", " other words", "h", i + 1) for i in range(2)))
    encoding = encode(PairSet(pairs.pairs + heldout.pairs), loaded.tokenizer, eos=True)
    features = features_of(loaded, encoding, pairs, heldout, cache_dir=folder / "cache")
    settings = Recipe(
        beta=BETA,
        learning_rate=LEARNING_RATE,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        seed=SEED,
        **changes,
    )
    train_model(loaded, encoding, features, settings, folder / "run", save_model=False)
    return [json.loads(line) for line in (folder / "run" / "train_log.jsonl").read_text().splitlines()]


def train_trl(model: Any, tokenizer: Any, pairs: PairSet, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """TRL's log of the same run."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    config = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        learning_rate=LEARNING_RATE,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="constant",
        seed=SEED,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **changes,
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=None if hasattr(model, "peft_config") else copy.deepcopy(model),  # without its adapter, that is
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def assert_same(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], relative: float, names: Sequence[str] = NAMES
) -> None:
    assert len(ours) == len(theirs) == STEPS
    for name in names:
        mine = torch.tensor([row[name] for row in ours], dtype=torch.float64)
        other = torch.tensor([row[name] for row in theirs], dtype=torch.float64)
        scale = float(other.abs().max())
        assert scale > 0, name
        assert float((mine - other).abs().max()) <= relative * scale, (name, mine, other)
    if "rewards/margins" in names:
        assert [row["rewards/accuracies"] for row in ours] == [row["rewards/accuracies"] for row in theirs]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_step_is_trls(tmp_path: Path, accumulation: int) -> None:
    pairs = some_pairs(18)  # not a multiple of the batch: an epoch ends in a ragged batch within the run
    loaded = tiny_loaded()
    theirs = train_trl(
        copy.deepcopy(loaded.model), loaded.tokenizer, pairs, tmp_path / "trl", gradient_accumulation_steps=accumulation
    )
    ours = train_ours(loaded, pairs, tmp_path, gradient_accumulation_steps=accumulation)
    assert_same(ours, theirs, relative=1e-4)


@pytest.mark.parametrize("modules", [None, "all-linear"])
def test_every_step_of_an_adapter_is_trls(tmp_path: Path, modules: str | None) -> None:
    """TRL trains the adapter that ours starts from; dropout, which draws other numbers in packed rows, is off."""
    pairs = some_pairs(18)
    loaded = tiny_loaded()
    lora = {"train": "lora", "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": modules}
    adapted = add_adapter(copy.deepcopy(loaded.model), Recipe(**lora, seed=SEED))
    theirs = train_trl(adapted, loaded.tokenizer, pairs, tmp_path / "trl")
    ours = train_ours(loaded, pairs, tmp_path, **lora)
    assert_same(ours, theirs, relative=1e-4)


@pytest.mark.parametrize("loss", ["ipo", "sigmoid_norm"])
def test_every_step_of_a_loss_that_averages_is_trls(tmp_path: Path, loss: str) -> None:
    """TRL logs rewards as sums over tokens, whatever the loss; ours are what the loss is of: means."""
    pairs = some_pairs(18)
    loaded = tiny_loaded()
    theirs = train_trl(copy.deepcopy(loaded.model), loaded.tokenizer, pairs, tmp_path / "trl", loss_type=loss)
    ours = train_ours(loaded, pairs, tmp_path, loss_type=loss)
    assert_same(ours, theirs, relative=1e-4, names=("loss", "grad_norm", "logps/chosen", "logps/rejected"))


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    pairs = some_pairs(18)
    loaded = tiny_loaded()
    theirs = train_trl(copy.deepcopy(loaded.model), loaded.tokenizer, pairs, tmp_path / "trl")
    ours = train_ours(loaded, pairs, tmp_path, max_grad_norm=0.01)
    with pytest.raises(AssertionError):
        assert_same(ours, theirs, relative=1e-4)
