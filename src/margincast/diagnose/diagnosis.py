"""Which training pairs make or break each held-out margin of a run, which are suspect, and what would cleaning do?

diagnosis = diagnose_run(features, recipe)
diagnosis.to_pandas()  # a row per training pair: its scores, and what it adds to held-out margins
diagnosis = clean(diagnosis, "cleaned.jsonl")  # the training pairs without the suspects, and what that would change
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from margincast.diagnose.effects import (
    CleaningEffect,
    Level,
    MarginParts,
    cleaning_effect,
    heldout_effects,
    heldout_parts,
    level,
    parts_of,
)
from margincast.diagnose.export import plan_changes, write_cleaned
from margincast.diagnose.interaction import Interaction, interaction
from margincast.diagnose.mean_margins import mean_interaction, mean_margins, sum_parts
from margincast.diagnose.suspects import Suspects, find_issues, shown
from margincast.errors import InputError
from margincast.features.positions import Positions
from margincast.frozen.attribution.contributions import attribute
from margincast.frozen.attribution.shares import EXACT_SUMS, GIVEN_PRECONDITIONER
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.forecast import forecast_frozen
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.recipe.recipe import Recipe
from margincast.records import Features
from margincast.results import Result

EFFECT = "heldout_effect"  # the column of what a training pair adds to the mean held-out margin


@dataclass(frozen=True)
class Cleaned:
    """Training data as written to `file`: ids of the pairs that were `changed`, by `action`, and what that would do."""

    file: str
    changed: tuple[str, ...]
    action: str
    effect: CleaningEffect


@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """A run of the unembedding after `step` steps, told by its training pairs.

    origin: what is diagnosed;  exact: in which sense contributions are
    sum_error: how far their sums miss these margins, of the largest;  heldout: of all held-out pairs
    suspects: scores of the training pairs, with a column `heldout_effect`: what each adds to the mean held-out margin
    interaction: who helps whom;  margins: the parts of every held-out margin, for responses of many tokens of the mean
    margin of every held-out concept and of all held-out pairs
    pair: of the one that was asked for;  cleaned: the data without suspects, where `clean` wrote them
    """

    presenter: ClassVar[str] = "diagnosis"

    features: Features | Positions
    recipe: Recipe
    origin: str
    exact: str
    step: int
    sum_error: float
    heldout: Level
    suspects: Suspects
    interaction: Interaction
    margins: tuple[MarginParts, ...]
    pair: MarginParts | None = None
    cleaned: Cleaned | None = None

    def __repr__(self) -> str:
        return f"Diagnosis(step {self.step}, held-out accuracy {self.heldout.accuracy:.1%}, {self.suspects!r})"

    def text(self, name: str) -> str:
        """The pair with the id `name` in one line. Raises `KeyError` where there is none."""
        for part in (self.features.train_pairs, self.features.heldout_pairs):
            for pair in part:
                if pair.id == name:
                    return shown(pair)
        raise KeyError(name)


def diagnose_run(
    features: Features | Positions,
    recipe: Recipe,
    *,
    suspects: Suspects | None = None,
    pair: str | None = None,
    top: int = 10,
    origin: str | None = None,
) -> Diagnosis:
    """Attribute the margins of the run that `forecast_frozen` tells, and find the suspects among its training pairs.

    For responses of many tokens (`Positions`) the margins that are attributed are the mean of every held-out concept,
    that over all held-out pairs and that of `pair`, after the last step: every one takes a matrix of the size of the
    unembedding. Time: some four forecasts and half of one for every concept.

    suspects: `find_issues(features)`, where it is known already;  pair: id of a pair whose margin's parts to give too
    top: contributions to keep of every margin;  origin: what is diagnosed, where the recipe does not say it all

    Raises what `forecast_frozen`, `attribute` and `find_issues` raise, and `InputError` for an id that no pair has.
    """
    known = {each.id for part in (features.train_pairs, features.heldout_pairs) for each in part}
    if pair is not None and pair not in known:
        raise InputError(f"no pair has the id {pair!r}; ids are like {features.heldout_pairs[0].id}")
    count = min(top, len(features.train_pairs))
    if isinstance(features, Positions):
        found = _of_sequences(features, recipe, pair, count)
    else:
        found = _of_single_tokens(features, recipe, pair, count)
    suspects = find_issues(features) if suspects is None else suspects
    optimizer = recipe.optimizer if isinstance(recipe.optimizer, str) else type(recipe.optimizer).__name__
    return Diagnosis(
        features=features,
        recipe=recipe,
        origin=origin or origin_of(optimizer, found.step, recipe.train),
        exact=found.exact,
        step=found.step,
        sum_error=found.sum_error,
        heldout=level(found.heldout),
        suspects=suspects.with_column(EFFECT, found.effects.tolist()),
        interaction=found.interaction,
        margins=found.margins,
        pair=found.pair,
    )


@dataclass(frozen=True)
class _Attributed:
    """The sums of a run, named as `Diagnosis` has them. heldout: (M,) margins;  effects: (N,) of the training pairs"""

    exact: str
    step: int
    sum_error: float
    heldout: Tensor
    effects: Tensor
    interaction: Interaction
    margins: tuple[MarginParts, ...]
    pair: MarginParts | None


def _of_single_tokens(features: Features, recipe: Recipe, pair: str | None, count: int) -> _Attributed:
    now = forecast_frozen(features, recipe)
    last = now.attributed()
    effects = heldout_effects(features, last, recipe)
    steps = (attribute(features, recipe, at=[step])[step] for step in now.steps)
    margins = now.heldout.margins[-1]
    sums = last.margins(token_spaces(features, recipe)[1])
    return _Attributed(
        exact=last.exact,
        step=now.steps[-1],
        sum_error=float((sums - margins).abs().max() / margins.abs().max().clamp_min(1e-300)),
        heldout=margins,
        effects=effects,
        interaction=interaction(features, steps, recipe),
        margins=heldout_parts(features, last, recipe, count),
        pair=None if pair is None else parts_of(features, last, recipe, pair, count),
    )


def _of_sequences(positions: Positions, recipe: Recipe, pair: str | None, count: int) -> _Attributed:
    now = forecast_positions(positions, recipe)
    found = mean_margins(now, pair)
    asked = None
    if found.pair is not None:
        concepts = {each.id: each.concept for part in (now.train.pairs, now.heldout.pairs) for each in part}
        asked = sum_parts(found.pair, concepts[found.pair.id], count)
    concept_parts = (sum_parts(each, each.id, count) for each in found.concepts)
    return _Attributed(
        exact=GIVEN_PRECONDITIONER if now.recipe.rule.averaged is not None else EXACT_SUMS,
        step=now.steps[-1],
        sum_error=found.sum_error,
        heldout=now.heldout.margins[-1],
        effects=found.overall.values,
        interaction=mean_interaction(positions, found),
        margins=(*concept_parts, sum_parts(found.overall, "", count)),
        pair=asked,
    )


def origin_of(optimizer: str, steps: int, train: str, *, trained: bool = False) -> str:
    """What is diagnosed, said plainly. train: what the run trains, as `Recipe.train` has it;  trained: it has"""
    frozen = f"training the unembedding on a frozen backbone, with {optimizer}, {steps} steps"
    if train == "head":
        return f"{frozen}: the run itself"
    what = {"all": "all weights", "lora": "a LoRA adapter", "adapter": "an adapter"}.get(train, "some weights")
    return (
        f"the forecast of {frozen}, with the settings of a run that {'trained' if trained else 'trains'} {what}; "
        "contributions are exact for the forecast, and no statement about what the moving backbone added. Suspects are "
        "of the data, and hold for both"
    )


def clean(
    diagnosis: Diagnosis,
    path: str | Path,
    *,
    action: str = "drop",
    kinds: Sequence[str] = ("mislabel",),
    threshold: float | None = None,
    share: float | None = None,
) -> Diagnosis:
    """Write the training pairs with suspects changed (`plan_changes`, `write_cleaned`); the diagnosis, saying so, with
    what that would do to the held-out margins: first order, and run again.

    Raises what `plan_changes` raises.
    """
    features = diagnosis.features
    changes = plan_changes(diagnosis.suspects, action, kinds, threshold=threshold, share=share)
    write_cleaned(path, features.train_pairs, features.heldout_pairs, changes)
    effect = cleaning_effect(features, changes, diagnosis.recipe, diagnosis.heldout)
    return replace(diagnosis, cleaned=Cleaned(str(path), tuple(change.id for change in changes), action, effect))
