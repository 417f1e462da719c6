"""What does each training pair do to held-out margins, and what would changing some of them do?

First order: derivatives through the whole run (`frozen.attribution.sensitivity`), or what `predict_edits` puts in their
place. Run again: the forecast of the changed data with the same settings, its batches drawn anew; with weights, the
batches of the run as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.export import Change
from margincast.diagnose.kernel import blocks
from margincast.features.positions import Positions
from margincast.frozen.attribution.contributions import Attribution
from margincast.frozen.attribution.counterfactual import predict_edits, rerun
from margincast.frozen.attribution.edits import Edit
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.forecast import forecast_frozen
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.recipe.recipe import Recipe
from margincast.records import Features, Pair

BLOCK = 4096
DERIVATIVES = 20_000_000
# Of many tokens: positions that the run's steps meet, times the numbers of the unembedding. Set by judgement: of
# what a third of it takes is known only that it is minutes.
DERIVATION = 1e12


@dataclass(frozen=True)
class Part:
    """What the training pair `id` contributes to a margin."""

    id: str
    contribution: float


@dataclass(frozen=True)
class MarginParts:
    """A pair's margin: what training pairs add and take away, the largest contributions, and the sum of the others."""

    id: str
    concept: str
    margin: float
    positive: float
    negative: float
    rest: float
    top: tuple[Part, ...]


@dataclass(frozen=True)
class Level:
    """Mean margin of some pairs, and the share of them with a margin above 0 where it is known."""

    margin: float
    accuracy: float | None


@dataclass(frozen=True)
class CleaningEffect:
    """The held-out pairs as they are, after changes run again, and to first order where that was not too large."""

    now: Level
    first_order: Level | None
    rerun: Level


def heldout_effects(features: Features, attribution: Attribution, recipe: Recipe) -> Tensor:
    """What each training pair adds to the mean held-out margin, (N,)."""
    _, targets = token_spaces(features, recipe)
    rows = blocks(len(features.train.pairs), BLOCK)
    return torch.cat([attribution.contributions(targets, part).mean(dim=0) for part in rows])


def heldout_parts(features: Features, attribution: Attribution, recipe: Recipe, count: int) -> tuple[MarginParts, ...]:
    """Of every held-out pair, with its `count` largest contributions."""
    _, targets = token_spaces(features, recipe)
    return _parts(features, attribution, targets, features.heldout.pairs, count)


def parts_of(features: Features, attribution: Attribution, recipe: Recipe, name: str, count: int) -> MarginParts:
    """The same of one held-out or training pair. Raises `KeyError` where none has that id."""
    spaces = token_spaces(features, recipe)
    for part, space in zip((features.train, features.heldout), spaces, strict=True):
        index = [k for k, pair in enumerate(part.pairs) if pair.id == name]
        if index:
            return _parts(features, attribution, space.rows(torch.tensor(index)), [part.pairs[index[0]]], count)[0]
    raise KeyError(name)


def cleaning_effect(
    features: Features | Positions, changes: Sequence[Change], recipe: Recipe, known: Level | None = None
) -> CleaningEffect:
    """Mean held-out margin and accuracy now, after `changes` to first order, and run again.

    known: how the held-out pairs are now, which spares a run of responses of many tokens

    First order is left out where it would hold more than `DERIVATIVES` numbers. For responses of many tokens it is what
    `predict_edits` says where the optimizer is Adam's kind, else of the mean margin alone, and left out of runs of more
    than `DERIVATION`, where it takes far longer than to run again.
    """
    edit = edit_of(features, changes)
    if isinstance(features, Positions):
        now = known or level(forecast_positions(features, recipe).heldout.margins[-1])
        first_order: Level | None = None
        if _derivation(features, recipe) <= DERIVATION:
            first_order = _predicted(features, edit, recipe, now)
    else:
        now, first_order = _first_order(features, edit, recipe)
    weighed = any(change.action == "weight" for change in changes)
    again = reweighed(features, edit, recipe) if weighed else rerun(features, edit, recipe).heldout.margins[-1]
    return CleaningEffect(now, first_order, level(again))


def _predicted(positions: Positions, edit: Edit, recipe: Recipe, now: Level) -> Level:
    if recipe.rule.linear or recipe.rule.flow:
        return Level(now.margin + float(sensitivity(positions, recipe, torch.mean).change(edit)), None)
    return level(predict_edits(positions, [edit], recipe).edited[0])


def _derivation(positions: Positions, recipe: Recipe) -> float:
    """How many positions the steps of the run meet, times the numbers of the unembedding."""
    pairs = positions.train.pairs
    recipe = recipe.for_pairs(pairs)
    met = recipe.steps * pairs if recipe.rule.flow else sum(len(batch.rows) for batch in recipe.batches(pairs))
    return met * len(positions.train.target) / pairs * positions.unembedding.numel()


def edit_of(features: Features | Positions, changes: Sequence[Change]) -> Edit:
    """`changes` as an edit of the training pairs."""
    place = {pair.id: k for k, pair in enumerate(features.train_pairs)}
    rows = torch.tensor([place[change.id] for change in changes], dtype=torch.long)
    weights = torch.ones(len(place), dtype=torch.float64)
    flipped = torch.zeros(len(place), dtype=torch.bool)
    flipped[rows] = torch.tensor([change.action == "flip" for change in changes], dtype=torch.bool)
    weights[rows] = torch.tensor([change.weight for change in changes], dtype=torch.float64)
    return Edit(weights, flipped)


def _first_order(features: Features, edit: Edit, recipe: Recipe) -> tuple[Level, Level | None]:
    """How the held-out pairs are, and how they would be under `edit` to first order."""
    if len(features.train.pairs) * len(features.heldout.pairs) <= DERIVATIVES:
        known = sensitivity(features, recipe)
        return level(known.values), level(known.values + known.change(edit))
    return level(forecast_frozen(features, recipe).heldout.margins[-1]), None


def level(margins: Tensor) -> Level:
    """Of (pairs,) margins."""
    return Level(float(margins.mean()), float((margins > 0).double().mean()))


def _parts(
    features: Features, attribution: Attribution, targets: TokenSpace, pairs: Sequence[Pair], count: int
) -> tuple[MarginParts, ...]:
    top, margins = attribution.top(targets, count), attribution.margins(targets)
    ids = [pair.id for pair in features.train.pairs]
    return tuple(
        MarginParts(
            id=pair.id,
            concept=pair.concept,
            margin=float(margins[row]),
            positive=float(top.positive[row]),
            negative=float(top.negative[row]),
            rest=float(top.rest[row]),
            top=tuple(
                Part(ids[index], value)
                for index, value in zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            ),
        )
        for row, pair in enumerate(pairs)
    )
