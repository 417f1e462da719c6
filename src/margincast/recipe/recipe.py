"""What is a run, apart from its data? The settings of `forecast`, and the batches and schedule they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from margincast.recipe.batches import Batch, batch_order, full_batch
from margincast.recipe.losses import Loss, get_loss
from margincast.recipe.optimizers import SGD, AdamW, GradientFlow, Optimizer
from margincast.recipe.schedule import schedule


def recorded_steps(steps: int, every: int) -> tuple[int, ...]:
    """Step 0, every `every`-th step and the last."""
    return tuple(sorted({*range(0, steps + 1, every), steps}))


@dataclass(frozen=True)
class Recipe:
    """The keywords of `forecast`, with the same defaults."""

    beta: float = 0.01
    optimizer: Optimizer | GradientFlow = AdamW()  # noqa: RUF009 (a frozen record)
    steps: int = 60
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    seed: int = 1234
    eval_steps: int = 10
    loss_type: str | Loss = "sigmoid"
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    dtype: torch.dtype = torch.float64

    @property
    def loss(self) -> Loss:
        """Raises `InputError` for a loss that margincast does not have."""
        return get_loss(self.loss_type, self.beta, without_reference=True)

    @property
    def recorded(self) -> tuple[int, ...]:
        return recorded_steps(self.steps, self.eval_steps)

    @property
    def whole(self) -> bool:
        """Whether every step sees every pair."""
        return isinstance(self.optimizer, GradientFlow) or (
            isinstance(self.optimizer, SGD) and self.optimizer.full_batch
        )

    def batches(self, pairs: int) -> Iterator[Batch]:
        """One batch a step of `pairs` training pairs. Raises `InputError` when there is none."""
        if self.whole:
            return full_batch(pairs, self.steps)
        return batch_order(pairs, self.batch_size, self.steps, self.seed, self.gradient_accumulation_steps)

    @property
    def factor(self) -> Callable[[int], float]:
        """Schedule of the learning rate. Raises `InputError` for an unknown name."""
        return schedule(self.lr_scheduler_type, self.steps, self.warmup_steps)
