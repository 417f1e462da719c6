"""What would held-out margins, loss and accuracy be with other training data? To first order, and by running it.

The run is cheap, so the edited data is simply run again: `rerun` is, to rounding, what retraining a head on it gives.
The first-order prediction (`sensitivity`) adds up over pairs and says which pair is responsible for how much.
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
from margincast.frozen.attribution.edits import Edit, check_size, edited
from margincast.frozen.attribution.sensitivity import Sensitivity, sensitivity
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.forecast import Forecast, forecast_frozen
from margincast.frozen.tokens.forecast import TokenForecast, forecast_positions
from margincast.recipe.losses import Loss, get_loss
from margincast.recipe.recipe import Recipe
from margincast.records import Features


@dataclass(frozen=True)
class Change:
    """One number of the held-out pairs: as it was, and how it changes by first order and by the run itself."""

    before: float
    predicted: float
    rerun: float


@dataclass(frozen=True)
class Counterfactual:
    """Held-out margins after the last step, (M,) float64 each: as they were, as first order predicts them under `edit`,
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
    return targets.margins((values[:, None, None] * states).sum(dim=0))


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


def counterfactuals(
    features: Features | Positions, edits: Sequence[Edit], recipe: Recipe, *, first_order: Sensitivity | None = None
) -> list[Counterfactual]:
    """What each edit does to the held-out margins after the last step of the run that `forecast_frozen` tells.

    first_order: `sensitivity(features, recipe)`, where it is known already

    Raises what `forecast_frozen` raises, and `InputError` for an edit that is no data set of these pairs.
    """
    known = sensitivity(features, recipe) if first_order is None else first_order
    if len(known.values) != len(features.heldout_pairs):
        raise InputError("first_order must be of the held-out margins themselves: leave the functional out")
    found = []
    for edit in edits:
        # In the arithmetic of `before`: one pair's part can be less than what rounding differs by.
        run = rerun(features, edit, recipe, dtype=known.values.dtype)
        loss = get_loss(run.loss_type, run.beta, without_reference=True)
        after = run.heldout.margins[-1].double()
        found.append(Counterfactual(edit, loss, known.values, known.values + known.change(edit), after))
    return found
