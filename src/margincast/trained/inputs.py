"""What does a fitted forecast read of features, recipe and recorded margins? Plan, responses, spaces, nats.

Margins are over beta here, in nats, so that runs of different beta compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.spaces import start_margins, token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.losses import refuse_averaged
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, Trajectory
from margincast.trained.laws import PilotMargins, Plan, Responses
from margincast.trained.shape import at_unit_length, side_by_side
from margincast.trained.time import learning_rates


def check_recipe(recipe: Recipe) -> None:
    """Raises `InputError` for settings that a path length does not describe."""
    if recipe.train == "head":
        raise InputError("with train head the backbone is frozen, and the forecast exact: `forecast_frozen`")
    if not recipe.rule.path_known:
        raise InputError(
            f"forecasts of a trained backbone know adamw and adam, not {recipe.optimizer}: how far a run gets is its "
            "learning rate times its steps only where steps do not depend on the size of the gradient; the exact "
            "forecast of train head knows every optimizer"
        )


@dataclass(frozen=True)
class Begun:
    """Where a run from a trained adapter begins, which no run behind the constants did.

    lowest, mean, highest: of held-out margins before training
    pull: the mean of f' at the training margins there, over f'(0);  trains_on: whether the adapter itself trains
    """

    lowest: float
    mean: float
    highest: float
    pull: float
    trains_on: bool


def begun_of(features: Features, recipe: Recipe) -> Begun | None:
    """None where margins start as those of the runs behind the constants do: at 0, or without a reference."""
    train, heldout = (start_margins(split, recipe) for split in (features.train, features.heldout))
    if train is None or heldout is None:
        return None
    at_zero = recipe.loss.slope(torch.zeros(1, dtype=torch.float64))
    pull = float(recipe.loss.slope(train).mean() / at_zero)
    lowest, mean, highest = float(heldout.min()), float(heldout.mean()), float(heldout.max())
    return Begun(lowest, mean, highest, pull, recipe.train == "lora")


def check_lengths(features: Features, recipe: Recipe) -> None:
    """Raises `InputError` for a loss of averages over the tokens of longer responses: sizes are known of sums."""
    refuse_averaged(recipe.loss, single_token(features), "the forecast of a run that moves the backbone")


def plan_of(recipe: Recipe, pairs: int) -> Plan:
    """The run of `recipe` on `pairs` training pairs."""
    recipe = recipe.for_pairs(pairs)
    rule, batches = recipe.rule.without_decay(), tuple(recipe.batches(pairs))
    return Plan(tuple(learning_rates(recipe)), batches, rule, recipe.loss, recipe.train == "lora")


def start_of(recipe: Recipe, split: FeatureSet) -> Tensor:
    """Where margins over beta start, (pairs,) float64: at 0; at the log-ratios against the reference, of a model with a
    trained adapter; at the model's own, without a reference."""
    chosen, rejected = split.policy_logps
    own = (chosen - rejected).double()
    start = start_margins(split, recipe)
    if start is not None:
        return start / recipe.beta
    return own if recipe.loss.reference_free else torch.zeros_like(own)


def deep_spaces(features: Features, recipe: Recipe, taken: Tensor) -> tuple[TokenSpace, TokenSpace]:
    """Training and held-out pairs with what inner layers make of them as features. taken: rows that training takes

    Responses of many tokens are in their features already, signs and all: to the kernel they are all the same two.

    Raises `InputError` for features without inner layers, and for inner layers that are not finite.
    """
    inner = [split.layers for split in (features.train, features.heldout) if split.layers is not None]
    if len(inner) < 2:
        raise InputError("a forecast of a trained backbone looks at inner layers: extract features with layers=True")
    if not all(bool(each.isfinite().all()) for each in inner):
        raise InputError("what inner layers say of some pairs is not finite; extract features in float32")
    if not single_token(features):
        flat = at_unit_length(*inner)
        who = [responses_of(features, split) for split in (features.train, features.heldout)]
        of_train, of_heldout = (
            TokenSpace(each, split.chosen, split.rejected, recipe.beta, 2)
            for each, split in zip(flat, who, strict=True)
        )
        return of_train, of_heldout
    train, heldout = token_spaces(features, recipe)
    deep = side_by_side(inner[0][taken], *inner)
    return replace(train, features=deep[0]), replace(heldout, features=deep[1])


def single_token(features: Features) -> bool:
    return features.train.single_token and features.heldout.single_token


def responses_of(features: Features, split: FeatureSet) -> Responses:
    """The response tokens and concepts of the pairs of `split`. Responses of several tokens share no offset."""
    numbers = {name: number for number, name in enumerate(split.pairs.concepts)}
    concepts = torch.tensor([numbers[pair.concept] for pair in split.pairs])
    if not single_token(features):
        return Responses(torch.zeros_like(concepts), torch.ones_like(concepts), concepts)
    chosen, rejected = (
        torch.searchsorted(features.tokens, torch.tensor([ids[0] for ids in side]))
        for side in (split.chosen_ids, split.rejected_ids)
    )
    return Responses(chosen, rejected, concepts)


def heldout_nats(run: Trajectory, features: Features, recipe: Recipe, name: str) -> Tensor:
    """Held-out margins that `run` recorded, over beta and from 0 on, in the order of `features`: (steps, pairs).

    Raises `InputError`, which calls the run `name`, where it did not record one of those pairs.
    """
    rows = {pair.id: row for row, pair in enumerate(run.heldout.pairs)}
    missing = [pair.id for pair in features.heldout.pairs if pair.id not in rows]
    if missing:
        raise InputError(
            f"{name} did not record held-out pair {missing[0]} and {len(missing) - 1} more: give the run the same "
            "data, --holdout and --seed"
        )
    order = [rows[pair.id] for pair in features.heldout.pairs]
    return run.heldout.margins[:, order].double() / run.beta - start_of(recipe, features.heldout)


def pilot_margins_in(pilot: Trajectory, features: Features, recipe: Recipe) -> PilotMargins:
    """The last recorded step of `pilot`. Raises `InputError` where it is of other pairs, or has not begun."""
    nats = heldout_nats(pilot, features, recipe, "the pilot")
    steps = [step for step in pilot.steps if 0 < step <= recipe.steps]
    if not steps:
        raise InputError("the pilot has no recorded step after step 0")
    return PilotMargins(nats[pilot.steps.index(steps[-1])], steps[-1])
