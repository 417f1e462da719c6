"""Forecasts of many tokens from features alone: the order of a plain kernel, the size of the law, runs in the bands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from margincast.errors import InputError
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet
from margincast.trained.constants import package_constants
from margincast.trained.forecast import forecast_trained
from margincast.trained.inputs import plan_of
from margincast.trained.sequences import kinds_of_sequences, sequence_law
from tests.problems import make_features
from tests.tolerances import error

RECIPE = Recipe(beta=0.1, learning_rate=2e-5, max_steps=20, per_device_train_batch_size=8, eval_steps=10)


@pytest.fixture(scope="module")
def features() -> Features:
    """40 training and 20 held-out pairs of two tokens a response, two inner layers of width 8."""
    generator = torch.Generator().manual_seed(3)
    hidden, layers = torch.randn(60, 8, generator=generator), torch.randn(60, 2, 8, generator=generator) + 0.5
    ones = torch.zeros(60, dtype=torch.long)
    found = make_features(torch.randn(2, 8, generator=generator), hidden, ones, 1 - ones, 20)

    def longer(split: FeatureSet, rows: slice) -> FeatureSet:
        return replace(split, chosen_ids=((0, 1),) * len(split.pairs), layers=layers[rows])

    return replace(found, train=longer(found.train, slice(0, 40)), heldout=longer(found.heldout, slice(40, 60)))


def test_pairs_are_ordered_by_the_kernel_and_as_large_as_the_law_says(features: Features) -> None:
    made = forecast_trained(features, RECIPE)
    law, plan = sequence_law(), plan_of(RECIPE, 40)
    assert made.order == law.rank and made.tested == (law.shortest, law.longest)
    assert features.train.layers is not None and features.heldout.layers is not None
    train, heldout = (
        (each / each.norm(dim=-1, keepdim=True)).flatten(1).double()
        for each in (features.train.layers[plan.taken], features.heldout.layers)
    )
    kernel = train @ train.T
    values, vectors = torch.linalg.eigh(kernel)
    powers = torch.diag((values.clamp_min(0) + law.shape.ridge * values.max()) ** -law.shape.alpha)
    shape = (heldout @ train.T) @ vectors @ powers @ vectors.T @ torch.ones(len(train), dtype=torch.float64)
    size = law.size * plan.amplitude(package_constants().from_features.amplitude)
    margins = made.heldout.margins[-1] / RECIPE.beta
    assert error(margins, size * shape / shape.square().mean().sqrt()) <= 1e-6


def test_runs_that_differ_as_the_noise_says_are_in_the_bands(features: Features) -> None:
    made = forecast_trained(features, RECIPE)
    band, margins = made.bands[""].margin[-1], made.heldout.margins[-1]
    assert band.low < float(margins.mean()) < band.high
    spread = sequence_law().mean_noise * float(margins.square().mean().sqrt())
    assert band.high - band.low >= 2 * 1.6 * spread  # what the mean alone adds
    assert bool(((made.low < margins) & (margins < made.high))[-1].all())
    assert made.bands[""].margin[0].high == 0.0


def test_every_concept_misses_by_a_number_of_its_own() -> None:
    concepts = torch.tensor([0, 1, 0])
    (whole,), (first, second) = kinds_of_sequences(concepts)
    assert whole.sign.tolist() == [1.0, 1.0, 1.0]
    assert first.sign.tolist() == [1.0, 0.0, 1.0]
    assert second.sign.tolist() == [0.0, 1.0, 0.0]


def test_what_no_run_was_like_is_refused(features: Features) -> None:
    others = replace(package_constants(), fitted_on="runs of another model")
    with pytest.raises(InputError, match="for runs of all weights, with the constants of the package"):
        forecast_trained(features, RECIPE, calibration=others)
    with pytest.raises(InputError, match="for runs of all weights"):
        forecast_trained(features, replace(RECIPE, train="lora"))
    without = replace(features, train=replace(features.train, layers=None))
    with pytest.raises(InputError, match="looks at inner layers"):
        forecast_trained(without, RECIPE)
