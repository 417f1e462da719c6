"""How will margins of multi-token responses move when this data trains the unembedding? Exact for a frozen backbone.

Log-partitions do not cancel here, so the state is the whole dW, V x d, and every step goes through the softmax of every
response position of its batch, a block of positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from margincast.errors import InputError
from margincast.features.positions import TokenFeatures
from margincast.frozen.engine.step import simulate
from margincast.frozen.flow.integrate import clock_of, follow
from margincast.frozen.tokens.decomposition import distributions, log_distributions
from margincast.recipe.batches import Batch, full_batch
from margincast.recipe.losses import Loss, refuse_length_normalized
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet, SplitTrajectory, Trajectory

# Entries of softmax rows that a step keeps for its second product, 512 MiB in float64; a larger batch makes them twice.
KEEP = 1 << 26
FLOW_ORDER = 4  # a step of the flow holds twice as many states, each as large as the unembedding


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
    recipe: Recipe,
    *,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    progress: bool = False,
) -> Trajectory:
    """`frozen.forecast.forecast_frozen` for responses of any length, from the features of all their positions.

    pairs: the training and held-out pairs that the features are of;  unembedding, bias: of `features.positions.head_of`

    Memory is that of a few matrices of the shape of the unembedding in `dtype`, four with AdamW, beside the features;
    with gradient flow eight, and one for every recorded step.

    Raises `InputError` for a loss that divides log-ratios by the length of the response, which is no function of the
    margin here, `StatedFailure` when the simulated run diverges.
    """
    recipe = recipe.for_pairs(train.pairs)
    loss, wanted = recipe.loss, recipe.recorded
    refuse_length_normalized(loss, single_token=False)
    spaces = tuple(head_space(features, unembedding, recipe.beta, bias, dtype) for features in (train, heldout))
    spaces[0].check()
    # Only rewards are kept: a state is as large as the unembedding.
    recorded = [tuple(each.unembedding.new_zeros(each.features.pairs, 2) for each in spaces)]
    states = tqdm(_states(spaces[0], recipe), desc="forecast", unit="step", total=recipe.steps, disable=not progress)
    for step, state in states:
        if step in wanted:
            recorded.append(tuple(each.rewards(state) for each in spaces))
    splits = []
    for mine, of_split in zip(pairs, zip(*recorded, strict=True), strict=True):
        rewards = torch.stack(of_split)
        splits.append(SplitTrajectory(mine, rewards[..., 0] - rewards[..., 1], rewards[..., 0]))
    return Trajectory(
        steps=wanted,
        train=splits[0],
        heldout=splits[1],
        beta=recipe.beta,
        loss_type=loss,
        origin="forecast of training the unembedding on a frozen backbone (exact)",
    )


def _states(space: HeadSpace, recipe: Recipe) -> Iterator[tuple[int, Tensor]]:
    """Steps and the states after them: all steps, or of a flow those that are recorded."""
    if recipe.rule.flow:
        steps = recipe.recorded[1:]
        times = clock_of([recipe.learning_rate * step for step in steps])
        return zip(steps, follow(_HeadFlow(space, recipe.loss), times, order=FLOW_ORDER)[0], strict=True)
    run = simulate(
        space,
        recipe.rule,
        recipe.batches(space.features.pairs),
        unembedding=space.unembedding,
        loss=recipe.loss,
        factor=recipe.factor,
        max_grad_norm=recipe.max_grad_norm,
    )
    return enumerate(run, start=1)


@dataclass(frozen=True)
class _HeadFlow:
    """The flow of the whole dW for `follow`: explicit, as a state is too large to solve in."""

    space: HeadSpace
    loss: Loss

    def zeros(self) -> Tensor:
        return self.space.zeros()

    def velocity(self, state: Tensor) -> Tensor:
        (whole,) = full_batch(self.space.features.pairs, 1)
        return -self.space.gradient(state, self.loss, whole)

    def implicit(self, state: Tensor) -> Callable[[Tensor, float], Tensor]:
        return lambda velocity, h: h * velocity


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
