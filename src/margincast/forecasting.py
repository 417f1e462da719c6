"""How will margins move in this run? Exactly where the backbone is frozen, else by what runs like it did.

One question, one function: the recipe says which weights train, and so which of the two answers there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from margincast.errors import InputError
from margincast.recipe.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from margincast.evaldata.features import EvalFeatures
    from margincast.features.positions import Positions
    from margincast.frozen.forecast import Forecast
    from margincast.frozen.tokens.forecast import TokenForecast
    from margincast.records import Features, Trajectory
    from margincast.trained.calibration import Given
    from margincast.trained.forecast import TrainedForecast
    from margincast.trained.rehearsal import Rehearsal


@overload
def forecast(
    features: Positions,
    recipe: Recipe,
    *,
    dtype: torch.dtype | None = None,
    eval_features: EvalFeatures | None = None,
) -> TokenForecast: ...


@overload
def forecast(
    features: Features,
    recipe: Recipe | None = None,
    *,
    rehearsal: Rehearsal | None = None,
    pilot: Trajectory | None = None,
    calibration: Given = None,
    constants: Given = None,
    dtype: torch.dtype | None = None,
    eval_features: EvalFeatures | None = None,
) -> Forecast | TrainedForecast: ...


def forecast(
    features: Features | Positions,
    recipe: Recipe | None = None,
    *,
    rehearsal: Rehearsal | None = None,
    pilot: Trajectory | None = None,
    calibration: Given = None,
    constants: Given = None,
    dtype: torch.dtype | None = None,
    eval_features: EvalFeatures | None = None,
) -> Forecast | TokenForecast | TrainedForecast:
    """Margins of every training and held-out pair at step 0, every `eval_steps` and the last, of the run of `recipe`.

    features: of `extract_features`; or, where responses have many tokens and the unembedding alone trains, of
    `extract_positions`
    recipe: None is `Recipe()`, the paper's run of all weights
    rehearsal: of this run (`rehearse`);  pilot: some first steps of it as trained. Both are of runs that train all
    weights or an adapter, whose forecast is not exact and has intervals
    calibration: of such forecasts: from `calibrate`, constants from `fit_constants`, or the file of either; None: the
    nearest that there is, as `TrainedForecast.validity` says;  constants: its former name
    dtype: what an exact forecast is calculated in; None is float64 for responses of one token and, except for gradient
    flow, float32 for those of many
    eval_features: of data that the run is not trained on (`extract_eval_features`), for `effects` of an exact forecast

    Gives a `Forecast`, or of positions a `TokenForecast`, which is exact and knows what every training pair
    contributed, where `recipe.train` is "head", else a `TrainedForecast`. Raises `InputError` for features, settings or
    responses that none of these covers.
    """
    from margincast.features.positions import Positions

    recipe = Recipe() if recipe is None else recipe
    if calibration is not None and constants is not None:
        raise InputError("constants is the former name of calibration; give calibration alone")
    calibration = constants if calibration is None else calibration
    if isinstance(features, Positions):
        return _forecast_positions(features, recipe, dtype, eval_features)
    if recipe.train != "head":
        if dtype is not None:
            raise InputError(f"dtype is for exact forecasts, with train head; train is {recipe.train!r}")
        if eval_features is not None:
            raise InputError("eval features are for exact forecasts, with train head; train_model measures other runs")
        from margincast.trained.forecast import forecast_trained

        return forecast_trained(features, recipe, rehearsal=rehearsal, pilot=pilot, calibration=calibration)
    if rehearsal is not None or pilot is not None or calibration is not None:
        raise InputError("with train head the forecast is exact: it takes no rehearsal, no pilot and no calibration")
    from margincast.frozen.forecast import forecast_frozen

    return forecast_frozen(features, recipe, dtype=dtype, eval_features=eval_features)


def _forecast_positions(
    features: Positions, recipe: Recipe, dtype: torch.dtype | None, eval_features: EvalFeatures | None
) -> TokenForecast:
    from margincast.frozen.tokens.forecast import forecast_positions

    if recipe.train != "head":
        raise InputError("positions are for train head; forecasts of other training take extract_features' features")
    return forecast_positions(features, recipe, dtype=dtype, eval_features=eval_features)
