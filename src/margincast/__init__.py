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
    "encode": "margincast.features",
    "extract_features": "margincast.features",
    "inspect_features": "margincast.structure",
    "forecast": "margincast.dynamics.forecast",
    "forecast_trained": "margincast.effective.forecast",
    "rehearse": "margincast.effective.rehearsal",
    "attribute": "margincast.dynamics.attribution",
    "counterfactuals": "margincast.dynamics.counterfactual",
    "rerun": "margincast.dynamics.counterfactual",
    "sensitivity": "margincast.dynamics.sensitivity",
    "Edit": "margincast.dynamics.edits",
    "drop": "margincast.dynamics.edits",
    "duplicate": "margincast.dynamics.edits",
    "flip": "margincast.dynamics.edits",
    "GradientFlow": "margincast.dynamics.optimizers",
    "SGD": "margincast.dynamics.optimizers",
    "AdamW": "margincast.dynamics.optimizers",
    "MarginCallback": "margincast.training.callback",
    "TrainingSettings": "margincast.training.settings",
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
    "load_run": "margincast.runs",
    "kept_features": "margincast.kept",
    "metric_rows": "margincast.metrics",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'margincast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
