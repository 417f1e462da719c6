"""How will margins move when this data trains this model's unembedding, before training? Exact when frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from margincast.effects import Effects, HeldoutResponses
from margincast.evaldata.features import EvalFeatures
from margincast.frozen.attribution.attributable import Attributable
from margincast.frozen.attribution.contributions import Attribution, account
from margincast.frozen.attribution.targets import Sums, Target
from margincast.frozen.effects import HeadMeter
from margincast.frozen.engine.pairspace import choose_form, simulate_in
from margincast.frozen.engine.spaces import precision, refuse_bias, token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.frozen.flow.driven import driven_flow
from margincast.frozen.flow.states import margin_error
from margincast.models.device import forecast_device, on_device
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, SplitTrajectory

ROWS = 4096  # training pairs whose contributions to every pair of a target are held at once


@dataclass(frozen=True)
class Forecast(Attributable):
    """A `Trajectory` that knows the run it comes from, and so what every training pair contributed to every margin."""

    features: Features = field(kw_only=True, repr=False)
    _attributed: dict[int, Attribution] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sums(self, targets: Sequence[Target], step: int) -> Sums:
        """The numbers of `attributions`."""
        spaces = dict(zip(("train", "heldout"), token_spaces(self.features, self.recipe, self.dtype), strict=True))
        found = self.attributed(step)
        mine = [spaces[target.split].rows(target.rows) for target in targets]
        blocks = torch.split(torch.arange(len(found.train)), ROWS)
        values = [torch.cat([found.contributions(each, rows).mean(dim=0) for rows in blocks]) for each in mine]
        start = [found.start(each).mean() for each in mine]
        return Sums(torch.stack(values), torch.stack(start))

    def attributed(self, step: int | None = None) -> Attribution:
        """The attribution of all margins after `step` steps, a recorded one, or the last. Computed at its first use,
        which costs another run.

        Raises `InputError` for a step that was not recorded.
        """
        step = self.recorded(step)
        if step not in self._attributed:
            train, _ = token_spaces(self.features, self.recipe, self.dtype)
            train = train.to(forecast_device(self.features.device))
            self._attributed[step] = account(train, self.recipe, self.features.unembedding, [step])[step]
        return self._attributed[step]


def forecast_frozen(
    features: Features,
    recipe: Recipe,
    *,
    dtype: torch.dtype | None = None,
    eval_features: EvalFeatures | None = None,
) -> Forecast:
    """Margins of every training and held-out pair at step 0, every `eval_steps` and the last.

    dtype: what they are calculated in; None is float64, or for features as large as a share of memory what those are
    stored in, which then stay in their file (`frozen.engine.spaces.precision`)
    eval_features: of data that the run is not trained on, on which `effects` of the result says what else changes

    Of training the unembedding alone, whatever `recipe.train` says: equal, to rounding, to `margincast train --train
    head` with the same settings. Gradient flow ignores batches, schedule and clipping: it is their limit for small
    learning rates; where the loss is convex, `error` of the result bounds the numerical error of its margins.

    Raises `InputError` when the features do not obey the equations: multi-token responses, logits not linear in W.
    """
    recipe = recipe.for_pairs(len(features.train.pairs))
    loss = recipe.loss
    dtype = precision(features) if dtype is None else dtype
    device = forecast_device(features.device)
    train, heldout = (space.to(device) for space in token_spaces(features, recipe, dtype))
    refuse_bias(features, loss)
    unembedding = features.unembedding.to(device, train.dtype)
    states, errors = _states(train, recipe, unembedding)
    error = None
    if errors is not None:
        error = max(float(margin_error(errors.to(device), space).max()) for space in (train, heldout))

    def record(split: FeatureSet, space: TokenSpace) -> SplitTrajectory:
        return _recorded(features, split, space, recipe, unembedding, states)

    return Forecast(
        steps=recipe.recorded,
        train=record(features.train, train),
        heldout=record(features.heldout, heldout),
        beta=recipe.beta,
        loss_type=loss if loss.parameters else recipe.loss_type,
        error=error,
        origin=f"forecast of training the unembedding on a frozen backbone (exact{on_device(device)})",
        effects=None if eval_features is None else _effects(features, eval_features, recipe, train, states),
        features=features,
        recipe=recipe,
        dtype=dtype,
    )


def _effects(
    features: Features, eval_features: EvalFeatures, recipe: Recipe, train: TokenSpace, states: list[Tensor]
) -> Effects:
    """What the run changes beside its pairs. train, states: of the T response tokens"""
    there = eval_features.to(train.features.device, train.dtype)
    if recipe.rule.decay:  # the other rows of W move as well: the run of all of them
        meter = HeadMeter(there)
        whole = replace(features, tokens=torch.arange(len(there.weight)), unembedding=there.weight)
        space = token_spaces(whole, recipe, train.features.dtype)[0].to(train.features.device)
        run = simulate(
            space,
            recipe.rule,
            recipe.batches(len(space)),
            unembedding=there.weight,
            loss=recipe.loss,
            factor=recipe.factor,
            max_grad_norm=recipe.max_grad_norm,
        )
        for step, state in enumerate(run, start=1):
            if step in recipe.recorded:
                meter.see([state])
    else:
        meter = HeadMeter(there, features.tokens)
        meter.see(states[1:])
    heldout = features.heldout
    lengths = torch.ones(len(heldout.pairs), 2, dtype=torch.long)
    responses = HeldoutResponses(lengths, heldout.policy_logps[0].double())
    return meter.effects(recipe.loss, recipe.beta, responses)


def _states(train: TokenSpace, recipe: Recipe, unembedding: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """dW at the recorded steps; and, of a flow with a convex loss, bounds on its errors, (steps,)."""
    rule, loss, wanted = recipe.rule, recipe.loss, recipe.recorded
    if rule.flow:
        times = [rule.learning_rate * step for step in wanted]
        flow = driven_flow(train, times, loss, start=unembedding if loss.reference_free else None)
        return list(flow.states.to(unembedding.dtype)), flow.error if loss.convex else None
    batch = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    size = len(train) if rule.whole_batch else min(len(train), batch)
    run = simulate_in(
        choose_form(train, rule, recipe.steps, size, loss),
        train,
        rule,
        recipe.batches(len(train)),
        unembedding=unembedding,
        loss=loss,
        factor=recipe.factor,
        max_grad_norm=recipe.max_grad_norm,
    )
    return [train.zeros(), *(state for step, state in enumerate(run, start=1) if step in wanted)], None


def _recorded(
    features: Features, split: FeatureSet, space: TokenSpace, recipe: Recipe, unembedding: Tensor, states: list[Tensor]
) -> SplitTrajectory:
    """Margins of one split and, where the normaliser is known, the rewards of its chosen responses."""
    free = recipe.loss.reference_free
    # Eq. 9: of pairs that are not trained on by the same dW as of those that are.
    margins = torch.stack([space.margins(unembedding + state if free else state) for state in states])
    if recipe.rule.decay:  # the other rows of W move as well, and the normaliser is not known from T rows
        return SplitTrajectory(split.pairs, margins.cpu())
    bias = 0.0 if features.bias is None else features.scale * features.bias.to(unembedding)
    start = space.logits(unembedding) + bias
    chosen = torch.stack([_chosen_rewards(split, space, start, state) for state in states])
    ratios = split.start_log_ratios
    if free:
        chosen = chosen + recipe.beta * split.policy_logps[0].to(chosen)
    elif ratios is not None:
        chosen = chosen + recipe.beta * ratios[0].to(chosen)
    return SplitTrajectory(split.pairs, margins.cpu(), chosen.cpu())


def _chosen_rewards(split: FeatureSet, space: TokenSpace, start: Tensor, state: Tensor) -> Tensor:
    """beta * log(pi/pi_0) of the chosen response, (pairs,), pi_0 the policy before training; without the vocabulary.

    Only T logits move, so Z changes by what they change: with p the probabilities of the T tokens under pi_0,
    log Z/Z0 = log(1 + sum_t p_t (exp(dlogit_t) - 1)).

    start: (pairs, T) pi_0's logits of the T tokens
    """
    change = space.logits(state)
    log_normaliser = start.gather(1, space.chosen[:, None]).squeeze(1) - split.policy_logps[0].to(start)
    probability = (start - log_normaliser[:, None]).exp()
    growth = torch.log1p((probability * torch.expm1(change)).sum(dim=1))
    return space.beta * (change.gather(1, space.chosen[:, None]).squeeze(1) - growth)
