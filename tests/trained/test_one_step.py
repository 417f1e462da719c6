"""A rehearsal at the run's own settings is the run: both go through `training.step`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from margincast.features import features_of
from margincast.models.load import LoadedModel
from margincast.passes.tokenize import Encoding, encode
from margincast.recipe.losses import LOSSES
from margincast.recipe.recipe import Recipe
from margincast.records import Features
from margincast.trained.rehearsal import rehearsed_logps
from margincast.trained.time import learning_rates
from margincast.training.run import train_model
from tests.problems import make_pairs
from tests.tiny import tiny_loaded

BETA, STEPS = 0.1, 4
SMOOTHED = {"cdpo": 0.1, "robust": 0.1, "exo_pair": 0.01}


def inputs(folder: Path) -> tuple[LoadedModel, Encoding, Features]:
    pairs = make_pairs(18)
    train, heldout = pairs[:13], pairs[13:]
    loaded = tiny_loaded()
    encoding = encode(pairs, loaded.tokenizer, eos=False)
    return loaded, encoding, features_of(loaded, encoding, train, heldout, cache_dir=folder / "cache")


def settings(**changes: object) -> Recipe:
    plain = {"beta": BETA, "learning_rate": 3e-3, "max_steps": STEPS, "per_device_train_batch_size": 5}
    return Recipe(**{**plain, "lr_scheduler_type": "linear", "eval_steps": STEPS, **changes})  # type: ignore[arg-type]


def assert_same(recipe: Recipe, folder: Path) -> None:
    loaded, encoding, features = inputs(folder)
    batches = [batch.rows.tolist() for batch in recipe.batches(len(features.train.pairs))]
    chosen, rejected = rehearsed_logps(loaded, encoding, features, recipe, batches, learning_rates(recipe))
    before = (
        0.0 if recipe.loss.reference_free else features.heldout.reference_chosen - features.heldout.reference_rejected
    )
    real = train_model(loaded, encoding, features, recipe, folder / "run", save_model=False).heldout.margins
    moved = float((real[-1] - real[0]).abs().max())
    gap = float((BETA * (chosen - rejected - before) - real[-1]).abs().max())
    assert moved > 0.01
    assert gap <= 1e-6 * max(1.0, moved)


@pytest.mark.parametrize("clip", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("name", LOSSES.names)
def test_a_rehearsal_is_the_run(name: str, clip: float, tmp_path: Path) -> None:
    smoothing = SMOOTHED.get(name)
    assert_same(settings(loss_type=name, label_smoothing=smoothing, max_grad_norm=clip), tmp_path)


@pytest.mark.parametrize("changes", [{"weight_decay": 0.3}, {"optimizer": "adam", "adam_beta1": 0.7}])
def test_of_every_optimizer_too(changes: dict[str, object], tmp_path: Path) -> None:
    """Weight decay leaves norms and biases alone in both."""
    assert_same(settings(**{"learning_rate": 1e-3, **changes}), tmp_path)


def test_without_clipping_gradients_are_not_gone(tmp_path: Path) -> None:
    """A rehearsal once set them to zero where max_grad_norm is 0, which means never to clip."""
    loaded, encoding, features = inputs(tmp_path)
    recipe = settings(max_grad_norm=0.0)
    chosen, _ = rehearsed_logps(loaded, encoding, features, recipe, [[0, 1, 2]], [1e-2])
    assert float((chosen - features.heldout.reference_chosen).abs().max()) > 0.1
    assert torch.isfinite(chosen).all()
