"""DPO on `transformers.Trainer`: TRL's argument and metric names, packed batches, the margin of every recorded pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from margincast.passes.response_pass import response_pass
from margincast.passes.tokenize import Encoded
from margincast.recipe.recipe import Recipe
from margincast.training.checkpoints import KEPT
from margincast.training.step import decaying, rewards

# transformers renamed the setting between 5.15 and 5.23, and warns of the old name.
RENAMED = "activation_checkpointing"
CHECKPOINTING = RENAMED if hasattr(TrainingArguments, RENAMED) else "gradient_checkpointing"


def arguments(recipe: Recipe, state: Path, batch_size: int, device: str) -> TrainingArguments:
    """`recipe` as `MarginTrainer` takes it. batch_size: of all processes together; state: its folder."""
    checkpointing: Any = {CHECKPOINTING: recipe.gradient_checkpointing}
    return TrainingArguments(
        output_dir=str(state),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.rule.decay,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=recipe.bf16,
        report_to=recipe.report_to,
        use_cpu=device == "cpu",
        eval_strategy="no",
        save_strategy="steps",
        save_steps=recipe.eval_steps,
        save_total_limit=KEPT,
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **checkpointing,
    )


@dataclass(frozen=True)
class TrainingRow:
    """One pair as a batch carries it, with its reference log-probabilities."""

    encoded: Encoded
    reference_chosen: float
    reference_rejected: float


class PairDataset(Dataset[TrainingRow]):
    """Encoded training pairs with their reference log-probabilities."""

    def __init__(self, rows: Sequence[Encoded], reference_chosen: Tensor, reference_rejected: Tensor) -> None:
        references = zip(reference_chosen.tolist(), reference_rejected.tolist(), strict=True)
        self.rows = [TrainingRow(row, *reference) for row, reference in zip(rows, references, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainingRow:
        return self.rows[index]


def collate(rows: list[TrainingRow]) -> dict[str, Any]:
    return {
        "ref_chosen_logps": torch.tensor([row.reference_chosen for row in rows], dtype=torch.float32),
        "ref_rejected_logps": torch.tensor([row.reference_rejected for row in rows], dtype=torch.float32),
        "pairs": [row.encoded for row in rows],
    }


class MarginTrainer(Trainer):
    """`transformers.Trainer` whose loss is f(margin), with TRL's metrics in its logs.

    Reference log-probabilities come with the batch: they are computed once, by the extraction pass.
    from_reference: whether the run starts from its reference, as all do but those of a trained adapter

    Here `per_device_train_batch_size` is the batch of all processes together: each computes its share of it. So any
    number of processes goes through the same batches in the same order, also the smaller last one of an epoch.
    """

    def __init__(self, *, recipe: Recipe, packed: bool, from_reference: bool = True, **kwargs: Any) -> None:
        super().__init__(optimizer_cls_and_kwargs=recipe.rule.torch_optimizer(), **kwargs)
        self.recipe = recipe
        self.packed = packed
        self.from_reference = from_reference
        self.model_accepts_loss_kwargs = False
        self._metrics: dict[str, list[float]] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = super().get_train_dataloader()
        if isinstance(loader.batch_sampler, BatchSamplerShard):
            # Every process gets all batches, as they are.
            loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
            loader.batch_sampler.even_batches = False
        return loader

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        return decaying(model)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        whole = inputs["pairs"]
        mine = share(whole, self.args.process_index, self.args.world_size)
        # Gradients and metrics are averaged over processes. One that has no share (the last batch of an epoch can be
        # that small) takes part with any pair, at no weight.
        weight = self.args.world_size / len(whole) if mine else 0.0
        mine = mine or [0]
        result = response_pass(model, [whole[index] for index in mine], self.packed)
        reference = inputs["ref_chosen_logps"][mine], inputs["ref_rejected_logps"][mine]
        same = self.from_reference and self.state.global_step == 0
        found = rewards(result, reference, self.recipe.loss, self.recipe.beta, same)
        margins = found.margins
        for name, values in {
            "rewards/chosen": found.chosen,
            "rewards/rejected": found.rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": result.chosen,
            "logps/rejected": result.rejected,
        }.items():
            self._metrics.setdefault(name, []).append(weight * float(values.detach().sum()))
        return weight * self.recipe.loss.value(margins).sum()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            means = torch.tensor(
                [sum(values) / len(values) for values in self._metrics.values()], device=self.args.device
            )
            means = self.accelerator.reduce(means, "mean")
            logs = logs | dict(zip(self._metrics, means.tolist(), strict=True))
            self._metrics.clear()
        super().log(logs, *args, **kwargs)


def share(batch: Sequence[Encoded], process: int, processes: int) -> list[int]:
    """Which pairs of `batch` are one process's: neighbours in the order of their prompts, which share most."""
    order = sorted(range(len(batch)), key=lambda index: batch[index].prompt)
    return order[process * len(batch) // processes : (process + 1) * len(batch) // processes]
