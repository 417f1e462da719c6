"""What would held-out margins, loss and accuracy be with other training data? Predicted, and by running it.

The run is cheap, so the edited data is simply run again: `rerun` is, to rounding, what retraining a head on it gives.
`predict_edits` is cheaper where there are many edits: first order in the pairs' weights (`sensitivity`), which adds up
over pairs. Adam divides gradients by their size, and its step is nearly a sign, of which a derivative foresees little:
there edits are carried through the run's own steps (`frozen.tokens.edited_run`), or run again where that is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from margincast.errors import InputError
from margincast.features.positions import Positions
from margincast.frozen.attribution.contributions import Attribution
from margincast.frozen.attribution.edits import Edit, check_size, drop, edited
from margincast.frozen.attribution.sensitivity import Functional, Sensitivity, reweighed, sensitivity
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.forecast import Forecast, forecast_frozen
from margincast.frozen.tokens.edited_run import edited_margins
from margincast.frozen.tokens.forecast import TokenForecast, default_dtype, forecast_positions, spaces_of
from margincast.recipe.losses import Loss, get_loss
from margincast.recipe.recipe import Recipe
from margincast.records import Features


@dataclass(frozen=True)
class Change:
    """One number of the held-out pairs: as it was, and how it changes as predicted and by the run itself."""

    before: float
    predicted: float
    rerun: float


@dataclass(frozen=True)
class Counterfactual:
    """Held-out margins after the last step, (M,) float64 each: as they were, as `predict_edits` has them under `edit`,
    and as the run on the edited data gives them."""

    edit: Edit
    loss: Loss
    before: Tensor
    predicted: Tensor
    rerun: Tensor

    @property
    def margin(self) -> Change:
        """Of the mean margin."""
        return self._change(lambda margins: margins)

    @property
    def mean_loss(self) -> Change:
        return self._change(self.loss.value)

    @property
    def accuracy(self) -> Change:
        """Of the share of pairs with a margin above 0."""
        return self._change(lambda margins: (margins > 0).double())

    @property
    def spearman(self) -> float:
        """Rank correlation of predicted and actual change over the held-out pairs; nan where one does not vary."""
        predicted, rerun = (self.predicted - self.before).numpy(), (self.rerun - self.before).numpy()
        if not (np.ptp(predicted) > 0 and np.ptp(rerun) > 0):
            return float("nan")
        return float(np.corrcoef(rankdata(predicted), rankdata(rerun))[0, 1])

    @property
    def max_abs_difference(self) -> float:
        """Of a margin as predicted from the margin as run."""
        return float((self.predicted - self.rerun).abs().max())

    def _change(self, number: Any) -> Change:
        before, predicted, rerun = (
            float(number(margins).mean()) for margins in (self.before, self.predicted, self.rerun)
        )
        return Change(before, predicted - before, rerun - before)


def direct_change(attribution: Attribution, targets: TokenSpace, edit: Edit) -> Tensor:
    """The change of the targets' margins under `edit` if no other pair reacted, (targets,).

    Contributions times -1 for a dropped pair, 1 for a repeated one and -2 for a flipped one, as if it pushed equally
    hard the other way. Cheap, and wrong by what the other pairs do in its place.

    Raises `InputError` for an edit of another number of pairs.
    """
    check_size(edit, len(attribution.train))
    factors = torch.where(edit.flipped, -1.0 - edit.weights, edit.weights - 1.0)
    values, groups = torch.unique(factors, return_inverse=True)
    states = attribution.by_group(groups, len(values))
    return targets.moved((values[:, None, None] * states).sum(dim=0))


@overload
def rerun(features: Positions, edit: Edit, recipe: Recipe, *, dtype: torch.dtype | None = None) -> TokenForecast: ...


@overload
def rerun(features: Features, edit: Edit, recipe: Recipe, *, dtype: torch.dtype | None = None) -> Forecast: ...


def rerun(
    features: Features | Positions, edit: Edit, recipe: Recipe, *, dtype: torch.dtype | None = None
) -> Forecast | TokenForecast:
    """The forecast of the edited training data; dtype: as of `forecast`.

    Batches are drawn anew where the number of pairs changes, as real training draws them.

    Raises what `forecast_frozen` raises, and `InputError` for an edit that is no data set of these pairs.
    """
    if isinstance(features, Positions):
        return forecast_positions(edited(features, edit), recipe, dtype=dtype)
    return forecast_frozen(edited(features, edit), recipe, dtype=dtype)


@dataclass(frozen=True)
class Prediction:
    """F numbers of the held-out margins after the last step, as they are, (F,), and under each of K edits, (K, F)."""

    values: Tensor
    edited: Tensor


def predict_edits(
    features: Features | Positions,
    edits: Sequence[Edit],
    recipe: Recipe,
    functional: Functional | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Prediction:
    """What each edit would make of numbers of the held-out margins, without a run for each.

    functional: (M,) held-out margins to (F,) numbers; left out, the margins themselves
    dtype: of responses of many tokens with Adam and its kind; None is that of their forecast

    Batches are those of the unedited run. With optimizers that add and scale gradients, and flows, this is first order
    and takes the time of `sensitivity`, however many edits there are. With others it is `reweighed`, exactly, for
    responses of one token; for those of many it is to first order in how pairs answer to one another, and takes for all
    edits a few runs and for each of them one update of W a step.

    Raises what `forecast_frozen` raises, and `InputError` for an edit of another number of pairs.
    """
    for edit in edits:
        check_size(edit, len(features.train_pairs))
    if recipe.rule.linear or recipe.rule.flow:
        return _first_order(sensitivity(features, recipe, functional), edits)
    if isinstance(features, Positions):
        recipe = recipe.for_pairs(features.train.pairs)
        spaces = spaces_of(features, recipe, default_dtype(recipe) if dtype is None else dtype)
        margins, changes = edited_margins(*spaces, recipe, edits)
        after = [margins, *(margins + changes)]
    else:
        after = [reweighed(features, edit, recipe) for edit in (drop(len(features.train_pairs), []), *edits)]
    found = torch.stack([margins if functional is None else functional(margins).reshape(-1) for margins in after])
    return Prediction(found[0], found[1:])


def counterfactuals(
    features: Features | Positions, edits: Sequence[Edit], recipe: Recipe, *, first_order: Sensitivity | None = None
) -> list[Counterfactual]:
    """What each edit does to the held-out margins after the last step of the run that `forecast_frozen` tells.

    first_order: `sensitivity(features, recipe)`, to predict by where it is known already, and not by `predict_edits`

    Batches of the edited data are drawn anew, as training on them would, which no prediction foresees.

    Raises what `forecast_frozen` raises, and `InputError` for an edit that is no data set of these pairs.
    """
    if first_order is None:
        known = predict_edits(features, edits, recipe, dtype=torch.float64)
    else:
        known = _first_order(first_order, edits)
    if known.values.shape != (len(features.heldout_pairs),):
        raise InputError("first_order must be of the held-out margins themselves: leave the functional out")
    found = []
    for edit, margins in zip(edits, known.edited, strict=True):
        # In the arithmetic of `before`: one pair's part can be less than what rounding differs by.
        run = rerun(features, edit, recipe, dtype=known.values.dtype)
        loss = get_loss(run.loss_type, run.beta, without_reference=True)
        found.append(Counterfactual(edit, loss, known.values, margins, run.heldout.margins[-1].double()))
    return found


def _first_order(known: Sensitivity, edits: Sequence[Edit]) -> Prediction:
    edited = [known.values + known.change(edit) for edit in edits]
    return Prediction(known.values, torch.stack(edited) if edited else known.values.new_zeros(0, len(known.values)))
