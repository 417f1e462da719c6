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
    "GradientFlow": "margincast.dynamics.optimizers",
    "SGD": "margincast.dynamics.optimizers",
    "AdamW": "margincast.dynamics.optimizers",
    "TrainingSettings": "margincast.training",
    "train_model": "margincast.training",
    "compare": "margincast.compare",
    "load_run": "margincast.runs",
    "metric_rows": "margincast.metrics",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'margincast' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
