"""How will margins move when this data trains this model's unembedding, before training? Exact when frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.attribution.contributions import Attribution, account
from margincast.frozen.attribution.of_pair import PairAttribution
from margincast.frozen.engine.pairspace import choose_form, simulate_in
from margincast.frozen.engine.spaces import precision, refuse_bias, token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.driven import driven_flow
from margincast.frozen.flow.states import margin_error
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, SplitTrajectory, Trajectory


@dataclass(frozen=True)
class Forecast(Trajectory):
    """A `Trajectory` that knows the run it comes from, and so what every training pair contributed to every margin."""

    features: Features = field(kw_only=True, repr=False)
    recipe: Recipe = field(kw_only=True)
    dtype: torch.dtype = field(default=torch.float64, kw_only=True)
    _attributed: dict[int, Attribution] = field(default_factory=dict, init=False, repr=False, compare=False)

    def attribution(self, pair: int | str, *, split: str = "heldout", step: int | None = None) -> PairAttribution:
        """The margin of one pair after `step` steps as a sum of one signed contribution per training pair.

        pair: index into the split, or the pair's id;  split: "heldout" or "train";  step: a recorded one, or the last
        What each optimizer's contributions mean: `frozen.attribution.contributions`.

        Raises `InputError` for a pair or a step that was not recorded.
        """
        sides = {"train": (self.features.train, 0), "heldout": (self.features.heldout, 1)}
        if split not in sides:
            raise InputError(f"split must be 'train' or 'heldout', got {split!r}")
        part, side = sides[split]
        index = _place(part, pair, split)
        targets = token_spaces(self.features, self.recipe.beta, self.dtype)[side].rows(torch.tensor([index]))
        found = self.attributed(step)
        recorded = self.train if split == "train" else self.heldout
        return PairAttribution(
            id=part.pairs[index].id,
            split=split,
            step=found.step,
            pairs=self.features.train.pairs,
            values=found.contributions(targets)[0],
            start=float(found.start(targets)[0]),
            margin=float(recorded.margins[self.steps.index(found.step), index]),
        )

    def attributed(self, step: int | None = None) -> Attribution:
        """The attribution of all margins after `step` steps, a recorded one, or the last. Computed at its first use,
        which costs another run.

        Raises `InputError` for a step that was not recorded.
        """
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise InputError(f"step {step} was not recorded; use one of {', '.join(map(str, self.steps))}")
        if step not in self._attributed:
            train, _ = token_spaces(self.features, self.recipe.beta, self.dtype)
            self._attributed[step] = account(train, self.recipe, self.features.unembedding, [step])[step]
        return self._attributed[step]


def forecast_frozen(features: Features, recipe: Recipe, *, dtype: torch.dtype | None = None) -> Forecast:
    """Margins of every training and held-out pair at step 0, every `eval_steps` and the last.

    dtype: what they are calculated in; None is float64, or for features as large as a share of memory what those are
    stored in, which then stay in their file (`frozen.engine.spaces.precision`)

    Of training the unembedding alone, whatever `recipe.train` says: equal, to rounding, to `margincast train --train
    head` with the same settings. Gradient flow ignores batches, schedule and clipping: it is their limit for small
    learning rates; where the loss is convex, `error` of the result bounds the numerical error of its margins.

    Raises `InputError` when the features do not obey the equations: multi-token responses, logits not linear in W.
    """
    recipe = recipe.for_pairs(len(features.train.pairs))
    rule, loss = recipe.rule, recipe.loss
    dtype = precision(features) if dtype is None else dtype
    # The flow's integrators are CPU code; steps run where there is a GPU (Apple's has no float64).
    gpu = torch.cuda.is_available() and not rule.flow
    device = torch.device("cuda" if gpu else "cpu")
    train, heldout = (space.to(device) for space in token_spaces(features, recipe.beta, dtype))
    refuse_bias(features, loss)
    unembedding = features.unembedding.to(device, train.dtype)
    states, errors = _states(train, recipe, unembedding)
    error = None
    if errors is not None:
        error = max(float(margin_error(errors, space).max()) for space in (train, heldout))

    def record(split: FeatureSet, space: TokenSpace) -> SplitTrajectory:
        return _recorded(features, split, space, recipe, unembedding, states)

    return Forecast(
        steps=recipe.recorded,
        train=record(features.train, train),
        heldout=record(features.heldout, heldout),
        beta=recipe.beta,
        loss_type=loss if loss.parameters else recipe.loss_type,
        error=error,
        origin=f"forecast of training the unembedding on a frozen backbone (exact{', on the GPU' if gpu else ''})",
        features=features,
        recipe=recipe,
        dtype=dtype,
    )


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
    if free:
        chosen = chosen + recipe.beta * split.reference_chosen.to(chosen)
    return SplitTrajectory(split.pairs, margins.cpu(), chosen.cpu())


def _chosen_rewards(split: FeatureSet, space: TokenSpace, start: Tensor, state: Tensor) -> Tensor:
    """beta * log(pi/pi_ref) of the chosen response, (pairs,), without the vocabulary.

    Only T logits move, so Z changes by what they change: with p the reference probabilities of the T tokens,
    log Z/Z0 = log(1 + sum_t p_t (exp(dlogit_t) - 1)).

    start: (pairs, T) the reference's logits of the T tokens
    """
    change = space.logits(state)
    log_normaliser = start.gather(1, space.chosen[:, None]).squeeze(1) - split.reference_chosen.to(start)
    probability = (start - log_normaliser[:, None]).exp()
    growth = torch.log1p((probability * torch.expm1(change)).sum(dim=1))
    return space.beta * (change.gather(1, space.chosen[:, None]).squeeze(1) - growth)


def _place(split: FeatureSet, pair: int | str, name: str) -> int:
    """The index of a pair given by index or id."""
    if isinstance(pair, str):
        found = [index for index, other in enumerate(split.pairs) if other.id == pair]
        if not found:
            raise InputError(f"no {name} pair has the id {pair!r}")
        return found[0]
    if not 0 <= pair < len(split.pairs):
        raise InputError(f"pair must lie in 0 .. {len(split.pairs) - 1} of the {name} pairs, got {pair}")
    return pair
