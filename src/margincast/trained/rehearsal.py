"""What would a run of the same length in few, long steps do? Training rehearsed at a larger learning rate.

AdamW moves every weight by about the learning rate a step, whatever the gradient's size. So the distance that training
has gone is its path length, the sum of its learning rates, and few steps of a larger learning rate go as far: n steps
in place of S, each with the learning rates of S/n real ones added up. Weights and features really move, which no frozen
picture shows. What the batch order does to the shared offset is lost in so few steps, so batches are drawn with labels
and concepts in the proportions of the data, and the offset is left to `offset`. Without that noise small batches do:
growth is compound, and more steps of fewer pairs compound more.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from margincast.errors import InputError, StatedFailure
from margincast.models.adapter import merged_model, with_adapter
from margincast.models.load import LoadedModel
from margincast.models.quantised import refuse_training_quantised
from margincast.passes.evaluate import Evaluator
from margincast.passes.plan import share_plan
from margincast.passes.response_pass import packing_problem
from margincast.passes.tokenize import Encoding
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet
from margincast.trained.inputs import check_lengths
from margincast.trained.time import learning_rates, merged
from margincast.training.step import take_step, torch_optimizer

PARTS, FEWEST = 4, 8  # a batch of training becomes up to 4 batches of rehearsal, of no fewer than 8 pairs


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal did.

    heldout: (pairs,) how far held-out margins are from their start at its end, float64
    pairs: distinct training pairs that it saw
    """

    heldout: Tensor
    pairs: int


def size_of(recipe: Recipe, share: float) -> tuple[int, int]:
    """(steps, pairs of a batch) of a rehearsal that takes `share` of the pairs that training takes."""
    batch = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    parts = max(1, min(PARTS, batch // FEWEST))
    return max(2, min(round(share * recipe.steps) * parts, recipe.steps)), batch // parts


def rehearse(
    loaded: LoadedModel,
    encoding: Encoding,
    features: Features,
    recipe: Recipe,
    steps: int,
    batch_size: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Rehearsal:
    """Rehearse the run of `recipe` in `steps` steps of `batch_size` pairs. `loaded` is left as it is.

    Raises `InputError` for settings that a path length does not describe, `StatedFailure` when the rehearsal diverges.
    """
    recipe = recipe.for_pairs(len(features.train.pairs))
    check_lengths(features, recipe)
    if not recipe.rule.path_known or recipe.train == "head":
        raise InputError("a rehearsal is of all weights or an adapter trained by adamw or adam")
    if steps < 2:
        raise InputError(f"a rehearsal takes at least 2 steps, got {steps}")
    batches = proportional_batches(features.train, batch_size, steps, seed)
    chosen, rejected = rehearsed_logps(
        loaded, encoding, features, recipe, batches, merged(learning_rates(recipe), steps), progress
    )
    before = features.heldout.policy_logps
    margins = recipe.beta * (chosen - rejected - (before[0] - before[1]).double())
    if not bool(margins.isfinite().all()):
        raise StatedFailure("the rehearsal diverged: its steps are longer than training's; rehearse in more steps")
    return Rehearsal(margins, len({row for batch in batches for row in batch}))


def rehearsed_logps(
    loaded: LoadedModel,
    encoding: Encoding,
    features: Features,
    recipe: Recipe,
    batches: Sequence[Sequence[int]],
    learning_rates: Sequence[float],
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Held-out log-probabilities (chosen, rejected), (pairs,) each, after a step on each of `batches`, which are rows
    of the training pairs, with its learning rate."""
    refuse_training_quantised(loaded.model, recipe.train)
    model = copy.deepcopy(loaded.model)
    share_plan(loaded.model, model)
    model = with_adapter(model, recipe) if recipe.train == "lora" else merged_model(model)
    rows, heldout = encoding.select(features.train.pairs).rows, encoding.select(features.heldout.pairs).rows
    packed = packing_problem(model, rows) is None
    evaluator = Evaluator(heldout, packed, frozen_backbone=False)
    optimizer = torch_optimizer(model, recipe.rule.in_forecasts)
    starts_there = features.train.start_log_ratios is None
    reference = features.train.reference_chosen.float(), features.train.reference_rejected.float()
    steps = tqdm(zip(batches, learning_rates, strict=True), "rehearse", len(batches), disable=not progress)
    for number, (batch, rate) in enumerate(steps):
        index = list(batch)
        here = [(reference[0][index], reference[1][index])]
        pairs = [[rows[row] for row in index]]
        take_step(model, optimizer, pairs, here, recipe, rate, same=starts_there and number == 0, packed=packed)
    return evaluator(model)


def proportional_batches(train: FeatureSet, size: int, steps: int, seed: int) -> list[list[int]]:
    """Rows of `steps` batches in which every concept and response has, as nearly as can be, its share of the data."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, pair in enumerate(train.pairs):
        groups.setdefault((pair.concept, train.chosen_ids[index], train.rejected_ids[index]), []).append(index)
    generator = random.Random(seed)
    for members in groups.values():
        generator.shuffle(members)
    drawn = dict.fromkeys(groups, 0)
    order: list[int] = []
    for count in range(1, size * steps + 1):
        owed = {key: count * len(members) / len(train.pairs) - drawn[key] for key, members in groups.items()}
        most = max(owed, key=lambda key: (owed[key], generator.random()))
        order.append(groups[most][drawn[most] % len(groups[most])])
        drawn[most] += 1
    return [order[start : start + size] for start in range(0, len(order), size)]
