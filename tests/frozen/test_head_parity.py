"""Every loss with every optimizer moves the margins as PyTorch moves them by training the whole V x d head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import BatchSampler
from transformers import get_scheduler

from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import Batch, batch_order, full_batch
from margincast.recipe.losses import LOSSES, Loss, custom_loss, get_loss
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.schedule import SCHEDULES, schedule

BETA = 0.4
VOCABULARY, HIDDEN, TRAIN, PROBE = 29, 6, 19, 5
RESPONSES = (2, 3, 5, 11, 17, 28)
STEPS, SEED = 10, 3
# 19 pairs in batches of 4, three to a step: an epoch ends with a smaller batch in a smaller group.
BATCH, ACCUMULATION = 4, 3
WARMUP = 2
# Relative to the largest margin: what rounding leaves after ten steps.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

PARAMETERS = {
    "cdpo": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "exo_pair": {"label_smoothing": 0.01},
}
MEMBERS = [get_loss(name, BETA, without_reference=True, **PARAMETERS.get(name, {})) for name in LOSSES.names]
MEMBERS.append(custom_loss("cosh", lambda r: (1 - r).cosh()))

Torch = Callable[[list[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Optimizer, Torch]] = {
    "gd": (GradientDescent(0.8), lambda p: torch.optim.SGD(p, 0.8)),
    "gd momentum": (GradientDescent(0.5, 0.8), lambda p: torch.optim.SGD(p, 0.5, momentum=0.8)),
    "sgd": (SGD(0.8), lambda p: torch.optim.SGD(p, 0.8)),
    "sgd decay": (SGD(0.8, weight_decay=0.05), lambda p: torch.optim.SGD(p, 0.8, weight_decay=0.05)),
    "sgd momentum": (SGD(0.5, momentum=0.9), lambda p: torch.optim.SGD(p, 0.5, momentum=0.9)),
    "sgd nesterov decay": (
        SGD(0.5, momentum=0.7, nesterov=True, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, 0.5, momentum=0.7, nesterov=True, weight_decay=0.05),
    ),
    "adam": (AdamW(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "adamw": (AdamW(0.05, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)),
    "adamw settings": (
        AdamW(0.05, 0.7, 0.95, 1e-4, 0.1),
        lambda p: torch.optim.AdamW(p, 0.05, (0.7, 0.95), 1e-4, weight_decay=0.1),
    ),
}


@dataclass(frozen=True)
class Problem:
    """Features, (pairs, hidden), vocabulary entries of both responses, (pairs,), and the head's start, (V, hidden)."""

    features: Tensor
    chosen: Tensor
    rejected: Tensor
    unembedding: Tensor

    def space(self, rows: slice) -> TokenSpace:
        tokens = torch.tensor(RESPONSES)
        chosen, rejected = (
            torch.searchsorted(tokens, side[rows].contiguous()) for side in (self.chosen, self.rejected)
        )
        return TokenSpace(self.features[rows], chosen, rejected, BETA, len(tokens))


def problem(dtype: torch.dtype) -> Problem:
    generator = torch.Generator().manual_seed(SEED)
    pairs = TRAIN + PROBE
    features = torch.randn(pairs, HIDDEN, generator=generator, dtype=torch.float64)
    unembedding = 0.3 * torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    draws = torch.stack([torch.randperm(len(RESPONSES), generator=generator)[:2] for _ in range(pairs)])
    chosen, rejected = torch.tensor(RESPONSES)[draws].unbind(dim=1)
    return Problem(features.to(dtype), chosen, rejected, unembedding.to(dtype))


def micro_batches(full: bool) -> Iterator[list[list[int]]]:
    """The batches of every step, as accelerate's sampler draws them and transformers' Trainer groups them."""
    if full:
        while True:
            yield [list(range(TRAIN))]
    sampler = BatchSampler(SeedableRandomSampler(range(TRAIN), data_seed=SEED), BATCH, drop_last=False)
    while True:
        epoch = list(sampler)
        yield from (epoch[start : start + ACCUMULATION] for start in range(0, len(epoch), ACCUMULATION))


def train_head(data: Problem, loss: Loss, make: Torch, full: bool, scheduler_name: str, clip: float | None) -> Tensor:
    """Margins of all pairs after every step, (steps, pairs), of a head that PyTorch trains from the loss's value."""
    weight = data.unembedding.clone().requires_grad_()
    optimizer = make([weight])
    scheduler = get_scheduler(scheduler_name, optimizer, WARMUP, STEPS)

    def log_ratios(matrix: Tensor, rows: list[int]) -> Tensor:
        logps = torch.log_softmax(data.features[rows] @ matrix.T, dim=-1)
        sides = (logps.gather(1, side[rows, None]).squeeze(1) for side in (data.chosen, data.rejected))
        return next(sides) - next(sides)

    def margins(rows: list[int]) -> Tensor:
        before = 0.0 if loss.reference_free else log_ratios(data.unembedding, rows)
        return BETA * (log_ratios(weight, rows) - before)

    recorded = []
    for group in islice(micro_batches(full), STEPS):
        optimizer.zero_grad()
        for rows in group:
            (loss.value(margins(rows)).mean() / len(group)).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([weight], clip)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            recorded.append(margins(list(range(TRAIN + PROBE))))
    return torch.stack(recorded)


def simulated(data: Problem, loss: Loss, ours: Optimizer, full: bool, name: str, clip: float | None) -> Tensor:
    batches: Iterator[Batch] = (
        full_batch(TRAIN, STEPS) if full else batch_order(TRAIN, BATCH, STEPS, SEED, ACCUMULATION)
    )
    everything = data.space(slice(None))
    states = simulate(
        data.space(slice(0, TRAIN)),
        ours,
        batches,
        unembedding=data.unembedding[list(RESPONSES)],
        loss=loss,
        factor=schedule(name, STEPS, WARMUP),
        max_grad_norm=clip,
    )
    start = data.unembedding[list(RESPONSES)] if loss.reference_free else 0.0
    return torch.stack([everything.margins(start + state) for state in states])


CASES = [
    (loss, optimizer, SCHEDULES[(i + j) % len(SCHEDULES)], 0.25 if (i + j) % 3 else None)
    for i, loss in enumerate(MEMBERS)
    for j, optimizer in enumerate(OPTIMIZERS)
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize(
    "loss, optimizer, scheduler, clip", CASES, ids=lambda value: value.name if isinstance(value, Loss) else str(value)
)
def test_margins_are_those_of_a_head_trained_by_pytorch(
    loss: Loss, optimizer: str, scheduler: str, clip: float | None, dtype: torch.dtype
) -> None:
    data = problem(dtype)
    ours, theirs = OPTIMIZERS[optimizer]
    full = ours.whole_batch
    expected = train_head(data, loss, theirs, full, scheduler, clip)
    computed = simulated(data, loss, ours, full, scheduler, clip)
    size = float(expected.abs().max())
    assert size > 0.02  # the head did move
    assert float((computed - expected).abs().max()) <= TOLERANCE[dtype] * size
