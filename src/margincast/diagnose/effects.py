"""What does each training pair do to held-out margins, and what would changing some of them do?

First order: derivatives through the whole run (`frozen.attribution.sensitivity`). Run again: the forecast of the
changed data with the same settings, its batches drawn anew; with weights, the batches of the run as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from margincast.diagnose.export import Change
from margincast.diagnose.kernel import blocks
from margincast.diagnose.suspects import shown
from margincast.frozen.attribution.contributions import Attribution
from margincast.frozen.attribution.counterfactual import rerun
from margincast.frozen.attribution.edits import Edit
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.forecast import forecast_frozen
from margincast.recipe.recipe import Recipe
from margincast.records import Features, Json

BLOCK = 4096
DERIVATIVES = 20_000_000


def heldout_effects(features: Features, attribution: Attribution, beta: float) -> Tensor:
    """What each training pair adds to the mean held-out margin, (N,)."""
    _, targets = token_spaces(features, beta)
    rows = blocks(len(features.train.pairs), BLOCK)
    return torch.cat([attribution.contributions(targets, part).mean(dim=0) for part in rows])


def heldout_tops(features: Features, attribution: Attribution, beta: float, count: int) -> list[Json]:
    """A row per held-out pair: its margin, what was added and taken away, and the `count` largest contributions."""
    _, targets = token_spaces(features, beta)
    return _rows(features, attribution, targets, features.heldout.pairs, count)


def top_of(features: Features, attribution: Attribution, beta: float, name: str, count: int) -> Json:
    """The same of one held-out or training pair, with texts."""
    spaces = token_spaces(features, beta)
    for part, space in zip((features.train, features.heldout), spaces, strict=True):
        index = [k for k, pair in enumerate(part.pairs) if pair.id == name]
        if index:
            row = _rows(features, attribution, space.rows(torch.tensor(index)), [part.pairs[index[0]]], count)[0]
            texts = {pair.id: shown(pair) for pair in features.train.pairs}
            row["top"] = [{**each, "text": texts[each["id"]]} for each in row["top"]]
            return {**row, "text": shown(part.pairs[index[0]])}
    raise KeyError(name)


def counterfactual(features: Features, changes: Sequence[Change], recipe: Recipe) -> Json:
    """Mean held-out margin and accuracy now, after `changes` to first order, and run again.

    First order is left out where it would hold more than `DERIVATIVES` numbers.
    """
    place = {pair.id: k for k, pair in enumerate(features.train.pairs)}
    rows = torch.tensor([place[change.id] for change in changes], dtype=torch.long)
    weights = torch.ones(len(place), dtype=torch.float64)
    flipped = torch.zeros(len(place), dtype=torch.bool)
    flipped[rows] = torch.tensor([change.action == "flip" for change in changes], dtype=torch.bool)
    weights[rows] = torch.tensor([change.weight for change in changes], dtype=torch.float64)
    edit = Edit(weights, flipped)
    result = {}
    if len(place) * len(features.heldout.pairs) <= DERIVATIVES:
        known = sensitivity(features, recipe)
        result = {"now": _summary(known.values), "first_order": _summary(known.values + known.change(edit))}
    else:
        result = {"now": _summary(forecast_frozen(features, recipe).heldout.margins[-1])}
    weighed = any(change.action == "weight" for change in changes)
    again = reweighed(features, edit, recipe) if weighed else rerun(features, edit, recipe).heldout.margins[-1]
    return {**result, "rerun": _summary(again)}


def _summary(margins: Tensor) -> dict[str, float]:
    return {"margin": float(margins.mean()), "accuracy": float((margins > 0).double().mean())}


def _rows(features: Features, attribution: Attribution, targets: Any, pairs: Sequence[Any], count: int) -> list[Json]:
    top, margins = attribution.top(targets, count), attribution.margins(targets)
    ids = [pair.id for pair in features.train.pairs]
    return [
        {
            "id": pair.id,
            "concept": pair.concept,
            "margin": float(margins[row]),
            "positive": float(top.positive[row]),
            "negative": float(top.negative[row]),
            "rest": float(top.rest[row]),
            "top": [
                {"id": ids[index], "contribution": value}
                for index, value in zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            ],
        }
        for row, pair in enumerate(pairs)
    ]
