"""margincast: forecast how a preference-tuning run will generalise, and why.

Public names are imported when first used, so that `import margincast` costs nothing; editors see where they come from.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from margincast.comparison import Comparison as Comparison
    from margincast.comparison import compare as compare
    from margincast.data import load_pairs as load_pairs
    from margincast.decision import Verdict as Verdict
    from margincast.decision import verdict as verdict
    from margincast.diagnose import Diagnosis as Diagnosis
    from margincast.diagnose import Suspects as Suspects
    from margincast.diagnose import clean as clean
    from margincast.diagnose import diagnose_run as diagnose_run
    from margincast.diagnose import find_issues as find_issues
    from margincast.diagnose import interaction as interaction
    from margincast.diagnose import plan_changes as plan_changes
    from margincast.diagnose import write_cleaned as write_cleaned
    from margincast.diagnose import write_without_worst as write_without_worst
    from margincast.effects import Effects as Effects
    from margincast.errors import InputError as InputError
    from margincast.errors import StatedFailure as StatedFailure
    from margincast.evaldata import EvalData as EvalData
    from margincast.evaldata import load_eval_data as load_eval_data
    from margincast.evaldata.features import EvalFeatures as EvalFeatures
    from margincast.evaldata.features import extract_eval_features as extract_eval_features
    from margincast.evaldata.tokens import encode_eval as encode_eval
    from margincast.features import extract_features as extract_features
    from margincast.features.kept import kept_features as kept_features
    from margincast.features.positions import Positions as Positions
    from margincast.features.positions import extract_positions as extract_positions
    from margincast.features.prompts import Prompts as Prompts
    from margincast.features.prompts import extract_prompts as extract_prompts
    from margincast.forecasting import forecast as forecast
    from margincast.frozen.attribution.contributions import Attribution as Attribution
    from margincast.frozen.attribution.contributions import attribute as attribute
    from margincast.frozen.attribution.counterfactual import counterfactuals as counterfactuals
    from margincast.frozen.attribution.counterfactual import predict_edits as predict_edits
    from margincast.frozen.attribution.counterfactual import rerun as rerun
    from margincast.frozen.attribution.edits import Edit as Edit
    from margincast.frozen.attribution.edits import drop as drop
    from margincast.frozen.attribution.edits import duplicate as duplicate
    from margincast.frozen.attribution.edits import flip as flip
    from margincast.frozen.attribution.of_pair import PairAttribution as PairAttribution
    from margincast.frozen.attribution.sensitivity import Sensitivity as Sensitivity
    from margincast.frozen.attribution.sensitivity import sensitivity as sensitivity
    from margincast.frozen.forecast import Forecast as Forecast
    from margincast.frozen.forecast import forecast_frozen as forecast_frozen
    from margincast.frozen.tokens import Decomposition as Decomposition
    from margincast.frozen.tokens import Displacements as Displacements
    from margincast.frozen.tokens import decompose as decompose
    from margincast.frozen.tokens import displacements as displacements
    from margincast.frozen.tokens import forecast_tokens as forecast_tokens
    from margincast.frozen.tokens.forecast import TokenForecast as TokenForecast
    from margincast.frozen.tokens.kernel import linearised_margins as linearised_margins
    from margincast.frozen.tokens.kernel import sequence_kernel as sequence_kernel
    from margincast.frozen.tokens.profile import RewardProfile as RewardProfile
    from margincast.models import LoadedModel as LoadedModel
    from margincast.models import load_model as load_model
    from margincast.passes.tokenize import encode as encode
    from margincast.recipe.loss import Loss as Loss
    from margincast.recipe.losses import LOSSES as LOSSES
    from margincast.recipe.losses import custom_loss as custom_loss
    from margincast.recipe.optimizer import Optimizer as Optimizer
    from margincast.recipe.optimizers import OPTIMIZERS as OPTIMIZERS
    from margincast.recipe.optimizers.adamw import AdamW as AdamW
    from margincast.recipe.optimizers.flow import GradientFlow as GradientFlow
    from margincast.recipe.optimizers.sgd import SGD as SGD
    from margincast.recipe.recipe import Recipe as Recipe
    from margincast.records import Features as Features
    from margincast.records import FeatureSet as FeatureSet
    from margincast.records import Pair as Pair
    from margincast.records import PairSet as PairSet
    from margincast.records import SplitTrajectory as SplitTrajectory
    from margincast.records import Trajectory as Trajectory
    from margincast.runs.load import Run as Run
    from margincast.runs.load import load_run as load_run
    from margincast.runs.metrics import metric_rows as metric_rows
    from margincast.selection import Selection as Selection
    from margincast.selection import select as select
    from margincast.structure import inspect_features as inspect_features
    from margincast.structure.inspect import Structure as Structure
    from margincast.structure.topics import Topics as Topics
    from margincast.structure.topics import find_topics as find_topics
    from margincast.theory.bounds import Bounds as Bounds
    from margincast.theory.bounds import bounds as bounds
    from margincast.theory.certificates import certify as certify
    from margincast.theory.distribution import preference_distribution as preference_distribution
    from margincast.theory.measured import measured_conditions as measured_conditions
    from margincast.theory.risk import population_risk as population_risk
    from margincast.theory.simulation import Setup as Setup
    from margincast.theory.simulation import Simulation as Simulation
    from margincast.theory.simulation import Sweep as Sweep
    from margincast.theory.simulation import simulate as simulate
    from margincast.theory.simulation import sweep as sweep
    from margincast.theory.theorems import guarantees as guarantees
    from margincast.theory.tube import flow_tube as flow_tube
    from margincast.trained.calibrate import calibrate as calibrate
    from margincast.trained.calibration import Calibration as Calibration
    from margincast.trained.constants import Constants as Constants
    from margincast.trained.fit import fit_constants as fit_constants
    from margincast.trained.forecast import TrainedForecast as TrainedForecast
    from margincast.trained.forecast import forecast_trained as forecast_trained
    from margincast.trained.rehearsal import Rehearsal as Rehearsal
    from margincast.trained.rehearsal import rehearse as rehearse
    from margincast.trained.trained_run import TrainedRun as TrainedRun
    from margincast.training.run import train_model as train_model
    from margincast.training.watch import Watch as Watch
    from margincast.trl import MarginCallback as MarginCallback

    __version__: str

_HOMES = {
    "load_pairs": "margincast.data",
    "Pair": "margincast.records",
    "PairSet": "margincast.records",
    "Features": "margincast.records",
    "Trajectory": "margincast.records",
    "InputError": "margincast.errors",
    "StatedFailure": "margincast.errors",
    "load_model": "margincast.models",
    "encode": "margincast.passes.tokenize",
    "extract_features": "margincast.features",
    "inspect_features": "margincast.structure",
    "forecast": "margincast.forecasting",
    "forecast_frozen": "margincast.frozen.forecast",
    "forecast_tokens": "margincast.frozen.tokens",
    "sequence_kernel": "margincast.frozen.tokens.kernel",
    "linearised_margins": "margincast.frozen.tokens.kernel",
    "TokenForecast": "margincast.frozen.tokens.forecast",
    "RewardProfile": "margincast.frozen.tokens.profile",
    "Recipe": "margincast.recipe.recipe",
    "Loss": "margincast.recipe.loss",
    "LOSSES": "margincast.recipe.losses",
    "custom_loss": "margincast.recipe.losses",
    "Optimizer": "margincast.recipe.optimizer",
    "OPTIMIZERS": "margincast.recipe.optimizers",
    "forecast_trained": "margincast.trained.forecast",
    "rehearse": "margincast.trained.rehearsal",
    "Rehearsal": "margincast.trained.rehearsal",
    "calibrate": "margincast.trained.calibrate",
    "Calibration": "margincast.trained.calibration",
    "Constants": "margincast.trained.constants",
    "fit_constants": "margincast.trained.fit",
    "TrainedRun": "margincast.trained.trained_run",
    "attribute": "margincast.frozen.attribution.contributions",
    "counterfactuals": "margincast.frozen.attribution.counterfactual",
    "predict_edits": "margincast.frozen.attribution.counterfactual",
    "rerun": "margincast.frozen.attribution.counterfactual",
    "sensitivity": "margincast.frozen.attribution.sensitivity",
    "Edit": "margincast.frozen.attribution.edits",
    "drop": "margincast.frozen.attribution.edits",
    "duplicate": "margincast.frozen.attribution.edits",
    "flip": "margincast.frozen.attribution.edits",
    "GradientFlow": "margincast.recipe.optimizers.flow",
    "SGD": "margincast.recipe.optimizers.sgd",
    "AdamW": "margincast.recipe.optimizers.adamw",
    "MarginCallback": "margincast.trl",
    "train_model": "margincast.training.run",
    "Watch": "margincast.training.watch",
    "Effects": "margincast.effects",
    "EvalData": "margincast.evaldata",
    "load_eval_data": "margincast.evaldata",
    "encode_eval": "margincast.evaldata.tokens",
    "EvalFeatures": "margincast.evaldata.features",
    "extract_eval_features": "margincast.evaldata.features",
    "preference_distribution": "margincast.theory.distribution",
    "guarantees": "margincast.theory.theorems",
    "population_risk": "margincast.theory.risk",
    "certify": "margincast.theory.certificates",
    "flow_tube": "margincast.theory.tube",
    "find_issues": "margincast.diagnose",
    "Suspects": "margincast.diagnose",
    "interaction": "margincast.diagnose",
    "plan_changes": "margincast.diagnose",
    "write_cleaned": "margincast.diagnose",
    "diagnose_run": "margincast.diagnose",
    "Diagnosis": "margincast.diagnose",
    "clean": "margincast.diagnose",
    "write_without_worst": "margincast.diagnose",
    "select": "margincast.selection",
    "Selection": "margincast.selection",
    "decompose": "margincast.frozen.tokens",
    "Decomposition": "margincast.frozen.tokens",
    "displacements": "margincast.frozen.tokens",
    "Displacements": "margincast.frozen.tokens",
    "bounds": "margincast.theory.bounds",
    "Bounds": "margincast.theory.bounds",
    "measured_conditions": "margincast.theory.measured",
    "simulate": "margincast.theory.simulation",
    "Simulation": "margincast.theory.simulation",
    "Setup": "margincast.theory.simulation",
    "sweep": "margincast.theory.simulation",
    "Sweep": "margincast.theory.simulation",
    "compare": "margincast.comparison",
    "verdict": "margincast.decision",
    "Verdict": "margincast.decision",
    "load_run": "margincast.runs.load",
    "kept_features": "margincast.features.kept",
    "metric_rows": "margincast.runs.metrics",
    "TrainedForecast": "margincast.trained.forecast",
    "Forecast": "margincast.frozen.forecast",
    "Run": "margincast.runs.load",
    "Comparison": "margincast.comparison",
    "Sensitivity": "margincast.frozen.attribution.sensitivity",
    "Attribution": "margincast.frozen.attribution.contributions",
    "PairAttribution": "margincast.frozen.attribution.of_pair",
    "Structure": "margincast.structure.inspect",
    "SplitTrajectory": "margincast.records",
    "FeatureSet": "margincast.records",
    "LoadedModel": "margincast.models",
    "extract_positions": "margincast.features.positions",
    "Positions": "margincast.features.positions",
    "extract_prompts": "margincast.features.prompts",
    "Prompts": "margincast.features.prompts",
    "find_topics": "margincast.structure.topics",
    "Topics": "margincast.structure.topics",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from margincast.version import VERSION

        return VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'margincast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
