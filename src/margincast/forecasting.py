"""How will margins move in this run? Exactly where the backbone is frozen, else by what runs like it did.

One question, one function: the recipe says which weights train, and so which of the two answers there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from margincast.errors import InputError
from margincast.recipe.recipe import Recipe

if TYPE_CHECKING:
    from margincast.frozen.forecast import Forecast
    from margincast.records import Features, Trajectory
    from margincast.trained.forecast import TrainedForecast
    from margincast.trained.rehearsal import Rehearsal


def forecast(
    features: Features,
    recipe: Recipe | None = None,
    *,
    rehearsal: Rehearsal | None = None,
    pilot: Trajectory | None = None,
) -> Forecast | TrainedForecast:
    """Margins of every training and held-out pair at step 0, every `eval_steps` and the last, of the run of `recipe`.

    recipe: None is `Recipe()`, the paper's run of all weights
    rehearsal: of this run (`rehearse`);  pilot: some first steps of it as trained. Both are of runs that train all
    weights or an adapter, whose forecast is not exact and has intervals

    Gives a `Forecast`, which is exact and knows what every training pair contributed, where `recipe.train` is "head",
    else a `TrainedForecast`. Raises `InputError` for features, settings or responses that neither covers.
    """
    recipe = Recipe() if recipe is None else recipe
    if recipe.train != "head":
        from margincast.trained.forecast import forecast_trained

        return forecast_trained(features, recipe, rehearsal=rehearsal, pilot=pilot)
    if rehearsal is not None or pilot is not None:
        raise InputError("with train head the forecast is exact: it takes no rehearsal and no pilot")
    from margincast.frozen.forecast import forecast_frozen

    return forecast_frozen(features, recipe)
