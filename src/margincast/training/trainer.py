"""DPO on `transformers.Trainer`: TRL's argument and metric names, packed batches, the margin of every recorded pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer

from margincast.features.passes import response_pass
from margincast.features.tokenize import Encoded
from margincast.losses import Loss


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
    """

    def __init__(self, *, loss: Loss, beta: float, packed: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss = loss
        self.beta = beta
        self.packed = packed
        self.model_accepts_loss_kwargs = False
        self._metrics: dict[str, list[float]] = {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        result = response_pass(model, inputs["pairs"], self.packed)
        references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        if self.state.global_step == 0:
            # Before the first update the policy is the reference: from the same pass, so that margins are exactly 0.
            references = result.chosen.detach(), result.rejected.detach()
        if self.loss.reference_free:
            references = torch.zeros_like(result.chosen), torch.zeros_like(result.rejected)
        chosen = self.beta * (result.chosen - references[0])
        rejected = self.beta * (result.rejected - references[1])
        margins = chosen - rejected
        for name, values in {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": result.chosen,
            "logps/rejected": result.rejected,
        }.items():
            self._metrics.setdefault(name, []).append(float(values.detach().mean()))
        return self.loss.value(margins).mean()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs = logs | {name: sum(values) / len(values) for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, *args, **kwargs)
