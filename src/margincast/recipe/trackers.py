"""Can a run be reported where `report_to` says? Asked before transformers says so itself, after minutes."""

from __future__ import annotations

from margincast.errors import InputError

# What the trackers that transformers can look for are called on the package index.
PACKAGES = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet-ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def check_report_to(name: str) -> None:
    """Raises `InputError` for a tracker that is not known, or whose package is not there."""
    if name == "none":
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known = {"none", "all", *INTEGRATION_TO_CALLBACK}
    if name not in known:
        raise InputError(f"report_to {name!r} is not known; use one of: {', '.join(sorted(known))}")
    if name in PACKAGES and name not in get_available_reporting_integrations():  # type: ignore[no-untyped-call]
        raise InputError(f"report_to {name} needs its package: pip install {PACKAGES[name]}")
