from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from margincast.models.load import LoadedModel
from margincast.passes.tokenize import Encoding
from margincast.records import Features, Trajectory
from margincast.training.run import train_model
from tests.training.short_run import RECIPE, Trained


@pytest.fixture(scope="module")
def trained(inputs: tuple[LoadedModel, Encoding, Features]) -> Trained:
    """Train a copy of the model in a folder. inputs: the module's own"""
    loaded, encoding, features = inputs

    def train(folder: Path, **options: object) -> Trajectory:
        fresh = replace(loaded, model=copy.deepcopy(loaded.model))
        return train_model(fresh, encoding, features, RECIPE, folder, **options)  # type: ignore[arg-type]

    return train
