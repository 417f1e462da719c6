"""margincast: forecast how a preference-tuning run will generalise, and why.

Public names are imported when first used, so that `import margincast` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
    "forecast": "margincast.frozen.forecast",
    "forecast_trained": "margincast.trained.forecast",
    "rehearse": "margincast.trained.rehearsal",
    "attribute": "margincast.frozen.attribution.contributions",
    "counterfactuals": "margincast.frozen.attribution.counterfactual",
    "rerun": "margincast.frozen.attribution.counterfactual",
    "sensitivity": "margincast.frozen.attribution.sensitivity",
    "Edit": "margincast.frozen.attribution.edits",
    "drop": "margincast.frozen.attribution.edits",
    "duplicate": "margincast.frozen.attribution.edits",
    "flip": "margincast.frozen.attribution.edits",
    "GradientFlow": "margincast.recipe.optimizers",
    "SGD": "margincast.recipe.optimizers",
    "AdamW": "margincast.recipe.optimizers",
    "MarginCallback": "margincast.training.trl",
    "TrainingSettings": "margincast.recipe.settings",
    "train_model": "margincast.training.run",
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
    "compare": "margincast.comparison",
    "load_run": "margincast.runs.load",
    "kept_features": "margincast.runs.features",
    "metric_rows": "margincast.runs.metrics",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'margincast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
