"""DPO on `transformers.Trainer`: TRL's argument and metric names, packed batches, the margin of every recorded pair."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from margincast.errors import StatedFailure
from margincast.passes.arguments import attended_throughout
from margincast.passes.response_pass import response_pass
from margincast.passes.tokenize import Encoded
from margincast.recipe.recipe import Recipe
from margincast.training.checkpoints import KEPT
from margincast.training.master import optimizer_of
from margincast.training.step import decaying, pack_by_pack, rewards

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
        super().__init__(optimizer_cls_and_kwargs=optimizer_of(kwargs["model"], recipe.rule), **kwargs)
        self.recipe = recipe
        self.packed = packed
        self.from_reference = from_reference
        self.model_accepts_loss_kwargs = False
        self._metrics: list[dict[str, float]] = []  # of every batch since the last log
        self._update: list[dict[str, Any]] = []  # batches of this step, the first of which is the `_before`th above
        self._before = 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = super().get_train_dataloader()
        if isinstance(loader.batch_sampler, BatchSamplerShard):
            # Every process gets all batches, as they are.
            loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
            loader.batch_sampler.even_batches = False
        return loader

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        return decaying(model)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The gradient of a batch is the sum of its packs': each is carried back before the next one goes forward."""
        step = super().training_step
        if self.is_fsdp_enabled:  # whose processes take every pass together: one, of whatever size
            self._metrics.append({})
            whole: Tensor = step(model, self._part(inputs), num_items_in_batch)
            return whole
        if not self._update:
            self._before = len(self._metrics)
        self._update.append(inputs)
        parts = [self._part(each) for each in self._update]

        def one(number: int, members: list[int], last: bool) -> tuple[int, Tensor]:
            if len(self._metrics) == self._before + number:
                self._metrics.append({})
            # Processes meet in the last backward pass of a batch, which sends all that was added up.
            alone = nullcontext() if last else self.accelerator.no_sync(model)
            try:
                with alone:
                    return number, step(model, _some(parts[number], members), num_items_in_batch)
            except torch.OutOfMemoryError as error:
                if last and self.args.world_size > 1:
                    raise StatedFailure(
                        "memory does not suffice for a pack, and other processes wait for its gradients; give smaller "
                        "ones by pack_tokens"
                    ) from error
                raise

        def restart() -> None:
            model.zero_grad()
            del self._metrics[self._before :]

        with attended_throughout(model):
            pairs = [part["pairs"] for part in parts]
            losses = pack_by_pack(model, pairs, self.packed, one, restart, done=len(parts) - 1)
        if self.accelerator.sync_gradients:
            self._update.clear()
        return torch.stack([loss for number, loss in losses if number == len(parts) - 1]).sum()

    def _part(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """This process's share of a batch.

        Gradients and metrics are averaged over processes. One that has no share (the last batch of an epoch can be that
        small) takes part with any pair, at no weight.
        """
        whole = len(inputs["pairs"])
        mine = share(inputs["pairs"], self.args.process_index, self.args.world_size)
        return {**_some(inputs, mine or [0]), "weight": self.args.world_size / whole if mine else 0.0}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Of some pairs of a batch, each with the weight that a pair has in it."""
        result = response_pass(model, inputs["pairs"], self.packed)
        reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        same = self.from_reference and self.state.global_step == 0
        found = rewards(result, inputs["pairs"], reference, self.recipe.loss, self.recipe.beta, same)
        margins, sums = found.margins, self._metrics[-1]
        for name, values in {
            "rewards/chosen": found.chosen,
            "rewards/rejected": found.rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": result.chosen,
            "logps/rejected": result.rejected,
        }.items():
            sums[name] = sums.get(name, 0.0) + inputs["weight"] * float(values.detach().sum())
        total: Tensor = inputs["weight"] * self.recipe.loss.value(margins).sum()
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            names = list(self._metrics[0])
            means = torch.tensor([[sums[name] for name in names] for sums in self._metrics]).mean(dim=0)
            means = self.accelerator.reduce(means.to(self.args.device), "mean")
            logs = logs | dict(zip(names, means.tolist(), strict=True))
            self._metrics.clear()
        super().log(logs, *args, **kwargs)


def _some(inputs: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """A batch of these rows of `inputs`."""
    pairs = [inputs["pairs"][row] for row in rows]
    references = {name: inputs[name][rows] for name in ("ref_chosen_logps", "ref_rejected_logps")}
    return {**inputs, **references, "pairs": pairs}


def share(batch: Sequence[Encoded], process: int, processes: int) -> list[int]:
    """Which pairs of `batch` are one process's: neighbours in the order of their prompts, which share most."""
    order = sorted(range(len(batch)), key=lambda index: batch[index].prompt)
    return order[process * len(batch) // processes : (process + 1) * len(batch) // processes]
