"""How will margins of multi-token responses move when this data trains the unembedding? Exact for a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from margincast.effects import HeldoutResponses
from margincast.evaldata.features import EvalFeatures
from margincast.features.positions import Positions, TokenFeatures
from margincast.frozen.attribution.attributable import Attributable
from margincast.frozen.attribution.shares import check_attributable
from margincast.frozen.attribution.targets import Sums, Target
from margincast.frozen.effects import HeadMeter
from margincast.frozen.engine.step import simulate
from margincast.frozen.flow.integrate import Stride, clock_of, follow
from margincast.frozen.tokens.attribution import FollowedBack, SteppedBack, sums
from margincast.frozen.tokens.profile import RewardProfile, profile_of
from margincast.frozen.tokens.replay import Followed, head_flow, stepped
from margincast.frozen.tokens.space import HeadSpace, head_space
from margincast.models.device import on_device
from margincast.passes.budgets import BUDGETS, Budgets
from margincast.recipe.losses import Loss
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet, SplitTrajectory

# Recorded states that are evaluated together: three products for two of them, where one by one they take four.
TOGETHER = 3
FLOW_ORDER = 4  # a step of the flow holds twice as many states, each as large as the unembedding


@dataclass(frozen=True)
class TokenForecast(Attributable):
    """`frozen.forecast.Forecast` for responses of any length.

    path: of a flow, the steps that its integrator took to every recorded one
    token_rewards: (P,) at the last step, of every training and of every held-out position
    """

    presenter: ClassVar[str] = "token_run"

    features: Positions = field(kw_only=True, repr=False)
    token_rewards: tuple[Tensor, Tensor] = field(kw_only=True, repr=False)
    path: tuple[tuple[Stride, ...], ...] = field(default=(), kw_only=True, repr=False)

    def sums(self, targets: Sequence[Target], step: int) -> Sums:
        """The numbers of `attributions`.

        Memory: three matrices of the shape of the unembedding for each target, beside some states of the run
        (`frozen.tokens.replay`).
        """
        check_attributable(self.recipe.rule)
        train, heldout = spaces_of(self.features, self.recipe, self.dtype)
        return sums(self._back(train, step), {"train": train, "heldout": heldout}, targets)

    def reward_profile(self) -> RewardProfile:
        """Rewards after the last step by token and turn of the responses, and what they owe to length."""
        positions, pairs = (self.features.train, self.features.heldout), (self.train.pairs, self.heldout.pairs)
        return profile_of(positions, pairs, self.token_rewards, self.origin, self.steps[-1])

    def _back(self, train: HeadSpace, step: int) -> SteppedBack | FollowedBack:
        recipe, pairs = self.recipe, train.features.pairs
        if recipe.rule.flow:
            flow = head_flow(train, recipe.loss, train.unembedding, pairs)
            return FollowedBack(Followed(flow, self.path[: self.steps.index(step)]), flow, train)
        return SteppedBack(stepped(train, recipe.rule, recipe, train.unembedding, pairs, step), train)


def spaces_of(
    positions: Positions, recipe: Recipe, dtype: torch.dtype, budgets: Budgets = BUDGETS
) -> tuple[HeadSpace, HeadSpace]:
    """Training and held-out pairs as the state and the loss see them, in `dtype`, where forecasts of `positions` are
    calculated. Raises `InputError` for features that are not finite."""
    positions = positions.there()
    spaces = [
        head_space(features, positions.unembedding, recipe.beta, positions.bias, dtype, budgets, recipe.loss)
        for features in (positions.train, positions.heldout)
    ]
    spaces[0].check()
    return spaces[0], spaces[1]


@torch.no_grad()
def forecast_positions(
    positions: Positions,
    recipe: Recipe,
    *,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    budgets: Budgets = BUDGETS,
    eval_features: EvalFeatures | None = None,
) -> TokenForecast:
    """`frozen.forecast.forecast_frozen` for responses of any length.

    dtype: what it is calculated in; None is float32, and float64 for gradient flow, whose local error float32 cannot
    tell

    budgets: what it may hold of softmax rows at once
    eval_features: as of `forecast_frozen`

    Memory is that of some matrices of the shape of the unembedding in `dtype`, eight with AdamW, beside the features
    (`memory_needed`); with gradient flow eight, and one for every recorded step.

    Margins are what the loss is of: of the means of log-ratios over the tokens of a response where it averages (`ipo`,
    `sigmoid_norm`, `simpo`), of log-probabilities where it has no reference (`simpo`).

    Raises `StatedFailure` when the simulated run diverges.
    """
    recipe = recipe.for_pairs(positions.train.pairs)
    dtype = default_dtype(recipe) if dtype is None else dtype
    loss, wanted = recipe.loss, recipe.recorded
    spaces = spaces_of(positions, recipe, dtype, budgets)
    where = spaces[0].unembedding.device
    states, path = _flow_states(spaces[0], recipe) if recipe.rule.flow else (_states(spaces[0], recipe), ())
    shown = tqdm(states, desc="forecast", unit="step", total=recipe.steps, disable=not progress)
    meter = None if eval_features is None else HeadMeter(eval_features.to(where, dtype))
    by_step, last = _recorded(spaces, (state for step, state in shown if step in wanted), meter)
    pairs = positions.train_pairs, positions.heldout_pairs
    splits = [
        SplitTrajectory(mine, rewards[..., 0] - rewards[..., 1], rewards[..., 0])
        for mine, rewards in zip(pairs, by_step, strict=True)
    ]
    return TokenForecast(
        steps=wanted,
        train=splits[0],
        heldout=splits[1],
        beta=recipe.beta,
        loss_type=loss,
        origin=f"forecast of training the unembedding on a frozen backbone (exact{on_device(where)})",
        effects=None if meter is None else meter.effects(loss, recipe.beta, _responses(spaces[1], loss)),
        features=positions,
        recipe=recipe,
        dtype=dtype,
        path=path,
        token_rewards=last,
    )


def default_dtype(recipe: Recipe) -> torch.dtype:
    """What a forecast is calculated in where nobody says."""
    return torch.float64 if recipe.rule.flow else torch.float32


def _responses(heldout: HeadSpace, loss: Loss) -> HeldoutResponses:
    """What held-out responses were before the run."""
    features = heldout.features
    lengths = features.per_response(torch.ones_like(features.target)).cpu()
    chosen = features.per_response(heldout.first_logps.double())[:, 0].cpu()
    return HeldoutResponses(lengths, chosen, averaged=loss.averaged)


def _recorded(
    spaces: tuple[HeadSpace, HeadSpace], states: Iterator[Tensor], meter: HeadMeter | None = None
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """By split the rewards at W0 and at all `states`, (steps, pairs, 2), and those of its positions at the last, (P,).

    A state is as large as the unembedding: only rewards are kept.
    """
    last = [each.first_rewards() for each in spaces]
    by_split = [[each.features.per_response(rewards)[None]] for each, rewards in zip(spaces, last, strict=True)]
    while some := list(islice(states, TOGETHER)):
        if meter is not None:
            meter.see(some)
        for place, (space, found) in enumerate(zip(spaces, by_split, strict=True)):
            of_tokens = space.token_rewards(some)
            found.append(torch.stack([space.features.per_response(rewards) for rewards in of_tokens]))
            last[place] = of_tokens[-1]
    return [torch.cat(found).cpu() for found in by_split], (last[0].cpu(), last[1].cpu())


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
) -> TokenForecast:
    """`forecast_positions` of positions by their parts.

    pairs: the training and held-out pairs that the features are of;  unembedding, bias: of `features.positions.head_of`
    """
    positions = Positions(train, heldout, *pairs, unembedding, bias, model="")
    return forecast_positions(positions, recipe, dtype=dtype, progress=progress)


def _flow_states(
    space: HeadSpace, recipe: Recipe
) -> tuple[Iterator[tuple[int, Tensor]], tuple[tuple[Stride, ...], ...]]:
    """Recorded steps and the states of the flow at their times; and the path that was taken to them."""
    wanted = recipe.recorded[1:]
    times = clock_of([recipe.learning_rate * step for step in wanted])
    flow = head_flow(space, recipe.loss, space.unembedding, space.features.pairs)
    followed, _, strides = follow(flow, times, order=FLOW_ORDER)
    return zip(wanted, followed, strict=True), tuple(strides)


def _states(space: HeadSpace, recipe: Recipe) -> Iterator[tuple[int, Tensor]]:
    """Steps and the states after them."""
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
