"""How will margins of multi-token responses move when this data trains the unembedding? Exact for a frozen backbone.

Log-partitions do not cancel here, so the state is the whole dW, V x d, and every step goes through the softmax of every
response position of its batch, a block of positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from margincast.errors import InputError
from margincast.features.positions import TokenFeatures
from margincast.frozen.engine.step import simulate
from margincast.frozen.tokens.decomposition import distributions, log_distributions
from margincast.recipe.batches import Batch, batch_order, full_batch
from margincast.recipe.losses import Loss, get_loss, refuse_length_normalized
from margincast.recipe.optimizers import SGD, AdamW, GradientFlow, Optimizer
from margincast.recipe.recipe import recorded_steps
from margincast.recipe.schedule import schedule
from margincast.records import PairSet, SplitTrajectory, Trajectory

# Entries of softmax rows that a step keeps for its second product, 512 MiB in float64; a larger batch makes them twice.
KEEP = 1 << 26


@dataclass(frozen=True)
class HeadSpace:
    """Pairs with responses of any length as seen by the state dW, (V, hidden). A `frozen.engine.state.Space`.

    features: their `reference` is of this very arithmetic at W0, not of the model, so that margins start at exactly 0

    unembedding: (V, hidden) W0, in the dtype of the features;  bias: (V,), which does not move
    """

    features: TokenFeatures
    unembedding: Tensor
    beta: float
    bias: Tensor | None

    def check(self) -> None:
        """Raises `InputError` for features that are not finite."""
        if not bool(self.features.hidden.isfinite().all()):
            bad = int((~self.features.hidden.isfinite().all(dim=1)).nonzero()[0])
            raise InputError(f"features of pair {int(self.features.pair[bad])} are not finite; extract them in float32")

    def zeros(self) -> Tensor:
        return torch.zeros_like(self.unembedding)

    def norm(self, gradient: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(gradient)
        return length

    def rewards(self, state: Tensor) -> Tensor:
        """Sequence rewards at W0 + `state`, (pairs, 2), chosen first (Eq. 12)."""
        logps = _logps(self.features, self.unembedding + state, self.bias)
        return self.beta * self.features.per_response(logps - _known(self.features))

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        """Gradient of the batch's mean loss at W0 + `state`, (V, hidden): minus Eq. 14."""
        part = self.features.select(batch.rows)
        weight = self.unembedding + state
        kept: list[tuple[slice, Tensor]] = []
        keep = len(part.hidden) * len(weight) <= KEEP
        logps = torch.empty_like(part.hidden[:, 0])
        for rows, block in log_distributions(part, weight, self.bias):
            logps[rows] = _own(part, rows, block)
            if keep:
                kept.append((rows, block.exp_()))
        rewards = self.beta * part.per_response(logps - _known(part))
        slopes = loss.slope(rewards[:, 0] - rewards[:, 1]) * batch.weights.to(rewards) * self.beta
        weights = slopes[part.pair] * part.sign
        pulled = weights[:, None] * part.hidden
        gradient = torch.zeros_like(weight).index_add_(0, part.target, pulled)
        for rows, probability in kept or distributions(part, weight, self.bias):
            gradient.addmm_(probability.T, pulled[rows], alpha=-1.0)
        return gradient


def head_space(
    features: TokenFeatures,
    unembedding: Tensor,
    beta: float,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> HeadSpace:
    """The `HeadSpace` of `features`, calculated in `dtype`."""
    features = replace(features, hidden=features.hidden.to(dtype), reference=None)
    unembedding = unembedding.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    return HeadSpace(replace(features, reference=_logps(features, unembedding, bias)), unembedding, beta, bias)


@torch.no_grad()
def forecast_tokens(
    train: TokenFeatures,
    heldout: TokenFeatures,
    pairs: tuple[PairSet, PairSet],
    unembedding: Tensor,
    *,
    bias: Tensor | None = None,
    beta: float = 0.01,
    optimizer: Optimizer | GradientFlow = AdamW(),  # noqa: B008 (a frozen record)
    steps: int = 60,
    batch_size: int = 32,
    gradient_accumulation_steps: int = 1,
    seed: int = 1234,
    eval_steps: int = 10,
    loss_type: str | Loss = "sigmoid",
    lr_scheduler_type: str = "constant",
    warmup_steps: int = 0,
    max_grad_norm: float = 1.0,
    dtype: torch.dtype = torch.float64,
    progress: bool = False,
) -> Trajectory:
    """`frozen.forecast.forecast` for responses of any length, from the features of all their positions.

    pairs: the training and held-out pairs that the features are of;  unembedding, bias: of `features.positions.head_of`

    Memory is that of a few matrices of the shape of the unembedding in `dtype`, four with AdamW, beside the features.
    Gradient flow takes one Runge-Kutta step of order 4 for each of `steps`.

    Raises `InputError` for a loss that divides log-ratios by the length of the response, which is no function of the
    margin here, `StatedFailure` when the simulated run diverges.
    """
    loss = get_loss(loss_type, beta, without_reference=True)
    refuse_length_normalized(loss, single_token=False)
    space, others = (head_space(features, unembedding, beta, bias, dtype) for features in (train, heldout))
    space.check()
    wanted = recorded_steps(steps, eval_steps)
    if isinstance(optimizer, GradientFlow):
        states = _runge_kutta(space, loss, optimizer.learning_rate, steps)
    else:
        whole = isinstance(optimizer, SGD) and optimizer.full_batch
        order = batch_order(train.pairs, batch_size, steps, seed, gradient_accumulation_steps)
        states = simulate(
            space,
            optimizer,
            full_batch(train.pairs, steps) if whole else order,
            unembedding=space.unembedding,
            loss=loss,
            factor=schedule(lr_scheduler_type, steps, warmup_steps),
            max_grad_norm=max_grad_norm,
        )
    # Only rewards are kept: a state is as large as the unembedding.
    recorded = [tuple(each.unembedding.new_zeros(each.features.pairs, 2) for each in (space, others))]
    for step, state in enumerate(
        tqdm(states, desc="forecast", unit="step", total=steps, disable=not progress), start=1
    ):
        if step in wanted:
            recorded.append(tuple(each.rewards(state) for each in (space, others)))
    splits = []
    for mine, of_split in zip(pairs, zip(*recorded, strict=True), strict=True):
        rewards = torch.stack(of_split)
        splits.append(SplitTrajectory(mine, rewards[..., 0] - rewards[..., 1], rewards[..., 0]))
    return Trajectory(
        steps=wanted,
        train=splits[0],
        heldout=splits[1],
        beta=beta,
        loss_type=loss_type,
        origin="forecast of training the unembedding on a frozen backbone (exact)",
    )


def _runge_kutta(space: HeadSpace, loss: Loss, rate: float, steps: int) -> Iterator[Tensor]:
    """States of gradient flow at times rate, 2 rate ... steps x rate."""
    (whole,) = full_batch(space.features.pairs, 1)
    state = space.zeros()
    for _ in range(steps):
        k1 = space.gradient(state, loss, whole)
        k2 = space.gradient(state - rate / 2 * k1, loss, whole)
        k3 = space.gradient(state - rate / 2 * k2, loss, whole)
        k4 = space.gradient(state - rate * k3, loss, whole)
        state = state - rate / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        yield state


def _known(features: TokenFeatures) -> Tensor:
    assert features.reference is not None  # `head_space` gives it
    return features.reference


def _logps(features: TokenFeatures, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(P,) log-probabilities of the target tokens."""
    logps = torch.empty_like(features.hidden[:, 0])
    for rows, block in log_distributions(features, weight, bias):
        logps[rows] = _own(features, rows, block)
    return logps


def _own(features: TokenFeatures, rows: slice, logps: Tensor) -> Tensor:
    return logps.gather(1, features.target[rows, None])[:, 0]
