"""The certificate and the fitted risk on SmolLM2's features of persona:k4, beside the theorem's own verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from margincast.data import load_pairs
from margincast.features import extract_features
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.flow.states import gradient_flow
from margincast.recipe.recipe import Recipe
from margincast.records import Features
from margincast.structure import inspect_features
from margincast.theory.distribution import preference_distribution
from margincast.theory.envelopes import first_order
from margincast.theory.risk import fit_clusters, fitted_risk
from margincast.theory.theorems import derived, printed
from margincast.theory.tube import flow_tube

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def features(shared: Path) -> Features:
    pairs = load_pairs("persona:k4", persona_dir=shared / "data" / "persona").spread(1000)
    train, heldout = pairs.split(0.4, seed=1234)
    return extract_features("smollm2", train, heldout)


def test_most_pairs_that_the_frozen_flow_has_learned_are_certified(features: Features) -> None:
    train, heldout = token_spaces(features, Recipe(beta=0.01))
    times = [0.1, 10.0, 100.0, 1000.0]
    states = gradient_flow(train, times).states
    tube = flow_tube(train, times)
    for space in (train, heldout):
        bracket = tube.bracket(space)
        margins = torch.stack([space.margins(state) for state in states])
        assert bool((bracket.lower <= margins).all() and (margins <= bracket.upper).all())
        learned = (margins > 0.0).sum(dim=1)
        assert bool((bracket.certified_learned() >= 0.9 * learned).all())
    assert first_order(train, heldout).horizon == 0.0  # signs of C alone certify nothing here


def test_the_theorems_do_not_speak_about_these_features(features: Features) -> None:
    estimate = inspect_features(features).clusters
    assert estimate is not None
    d = features.train.hidden.shape[1]
    it = preference_distribution(4, estimate.smallest_cluster, d, estimate.shared_norm, estimate.noise, "shared")
    for reading in (printed(it, 0.01), derived(it, 0.01)):
        assert reading.failure_vacuous and reading.risk_vacuous
        failed = {check.name for check in reading.conditions if not check.holds}
        assert {"Z <= 1/(4 l_b^2)", "v <= 1/(4 sqrt Q)", "concepts that repeat another's response pair"} <= failed


def test_the_gaussian_reading_of_the_risk_is_near_the_heldout_error(features: Features) -> None:
    train, heldout = token_spaces(features, Recipe(beta=0.01))
    state = gradient_flow(train, [1000.0]).states[0]
    concepts = {name: k for k, name in enumerate(features.train.pairs.concepts)}
    concept = torch.tensor([concepts[pair.concept] for pair in features.train.pairs])
    clusters = fit_clusters(train.features, train.chosen, train.rejected, 2 * concept + train.chosen)
    reading = 10.0 ** float(fitted_risk(clusters, state).log10)
    error = float((heldout.margins(state) <= 0.0).double().mean())
    assert reading == pytest.approx(error, abs=0.07)  # three standard errors of an error of .29 on 400 pairs
