"""Batches are those of transformers' Trainer: the same pairs in the same steps, and the same gradient from them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.optimizers.sgd import SGD
from tests.problems import random_space
from tests.tolerances import TOLERANCE, error


class Head(nn.Module):
    """A DPO head over given features, which writes down the rows of every batch it is given."""

    def __init__(self, space: TokenSpace) -> None:
        super().__init__()
        self.space = space
        self.weight = nn.Parameter(space.zeros())
        self.seen: list[list[int]] = []

    def forward(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(row.tolist())
        return {"loss": -nn.functional.logsigmoid(self.space.rows(row).margins(self.weight)).mean()}


class Rows(Dataset[dict[str, int]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row": index}


class Steps(TrainerCallback):
    """How many batches had been seen when each optimizer step ended."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.ends: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(len(self.head.seen))


@pytest.mark.parametrize(
    "pairs, batch_size, accumulation, steps, seed",
    [
        (10, 4, 1, 8, 0),  # several epochs, a ragged last batch, cut in the middle of an epoch
        (10, 3, 2, 5, 7),  # the last batch of one pair weighs as much as a full one in its step
        (11, 2, 4, 5, 1234),  # the last step of an epoch has fewer batches than the others
        (8, 4, 1, 4, 3),  # exact division
        (3, 8, 1, 3, 5),  # the batch is larger than the data
        (5, 2, 8, 3, 2),  # more accumulation than an epoch has batches
    ],
)
def test_the_trainer_draws_these_batches_with_these_weights(
    pairs: int, batch_size: int, accumulation: int, steps: int, seed: int, tmp_path: Path
) -> None:
    space = random_space(pairs, 4, 3, 0.8, seed)
    head = Head(space)
    counter = Steps(head)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        seed=seed,
        data_seed=seed,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    Trainer(model=head, args=arguments, train_dataset=Rows(pairs), callbacks=[counter]).train()
    starts = [0, *counter.ends[:-1]]
    drawn = [list(chain(*head.seen[start:end])) for start, end in zip(starts, counter.ends, strict=True)]

    ours = list(batch_order(pairs, batch_size, steps, seed, accumulation))
    assert [batch.rows.tolist() for batch in ours] == drawn
    *_, state = simulate(space, SGD(0.5), ours, unembedding=space.zeros())
    assert error(state, head.weight) <= TOLERANCE[torch.float64].run


@pytest.mark.parametrize("accumulation", [1, 2, 5])
def test_weights_sum_to_one_and_every_epoch_sees_every_pair_once(accumulation: int) -> None:
    per_epoch = -(-4 // accumulation)  # 10 pairs in batches of 3: 4 batches
    batches = list(batch_order(10, 3, 2 * per_epoch, 0, accumulation))
    assert [float(batch.weights.sum()) for batch in batches] == pytest.approx([1.0] * len(batches), rel=1e-14)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(torch.cat([batch.rows for batch in epoch]).tolist()) == list(range(10))


def test_seeds_and_epochs_give_other_orders() -> None:
    def order(seed: int) -> list[int]:
        return torch.cat([batch.rows for batch in batch_order(20, 5, 8, seed)]).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0)[:20] != order(0)[20:]
    assert order(0)[20:] == order(1)[:20]  # epoch e of seed s is drawn with s + e


def test_no_steps_no_batches_and_full_batch_is_the_mean() -> None:
    assert list(batch_order(5, 2, 0, 0)) == []
    batches = list(full_batch(4, 3))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3]] * 3
    assert batches[0].weights.tolist() == [0.25] * 4
