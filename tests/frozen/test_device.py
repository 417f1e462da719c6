"""Does all of a forecast happen on the model's device, with nothing left on the CPU but its results?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from margincast.frozen.attribution.contributions import attribute
from margincast.frozen.attribution.counterfactual import predict_edits
from margincast.frozen.attribution.edits import drop, flip
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.forecast import forecast_frozen
from margincast.frozen.tokens.displacement import displacements
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.frozen.tokens.pushes import decompose
from margincast.models.device import forecast_device
from tests.fake_device import fake_device, same_there
from tests.frozen.test_forecast import problem
from tests.frozen.tokens.test_attribution import PAIRS, options, positions

SOME = ["sgd, scheduled and clipped", "adam, scheduled and clipped", "adamw", "flow"]
STEPS = {"flow": 1}
EDITS = [drop(PAIRS, [1]), flip(PAIRS, [0, 3])]


def test_the_fake_refuses_what_a_gpu_refuses() -> None:
    with fake_device():
        there, here = torch.ones(3).to("meta"), torch.ones(3)
        assert there.device.type == "meta" and (there * 2).device.type == "meta"
        assert (there * torch.ones(())).device.type == "meta"
        assert there[torch.tensor([0, 1])].device == there.new_zeros(2).device == torch.device("meta")
        for wrong in (lambda: there + here, lambda: here.index_add(0, torch.arange(3), there), there.numpy):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert (there.cpu() + here).device.type == "cpu"


def test_apple_has_no_float64() -> None:
    assert forecast_device("mps") == forecast_device("cpu") == torch.device("cpu")
    assert forecast_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", SOME)
def test_forecast_and_attribution_of_many_tokens(name: str) -> None:
    def work(device: str) -> Any:
        there, recipe = replace(positions(), device=device), options(name, STEPS.get(name, 5))
        run = forecast_positions(there, recipe, dtype=torch.float64)
        found = run.attributions([run.target(0), run.target(2, split="train"), run.target()])
        profile = run.reward_profile().heldout
        splits = [(each.margins, each.chosen) for each in (run.train, run.heldout)]
        return [splits, run.token_rewards, [each.values for each in found], profile.margins, profile.shares]

    same_there(work)


def test_decomposition_and_displacement() -> None:
    def work(device: str) -> Any:
        there, recipe = replace(positions(), device=device), options("adamw")
        found, fallen = decompose(there, "p8", recipe), displacements(there, recipe)
        rates = torch.tensor([found.rates.margin, *(each.total for each in found.tokens["chosen"])])
        parts = [vars(each) for each in (fallen.train, fallen.heldout)]
        return [rates, parts, torch.tensor([each.blame for each in fallen.worst_tokens])]

    same_there(work)


@pytest.mark.parametrize("name", SOME[:-1])
def test_edits_of_many_tokens(name: str) -> None:
    def work(device: str) -> Any:
        there, recipe = replace(positions(), device=device), options(name, 3)
        known = sensitivity(there, recipe, torch.mean)
        found = predict_edits(there, EDITS, recipe, torch.mean, dtype=torch.float64)
        return [known.values, known.weights, known.twins, found.edited, reweighed(there, EDITS[1], recipe)]

    same_there(work)


@pytest.mark.parametrize("name", [*SOME, "sgd decay"])
def test_single_tokens(name: str) -> None:
    _, features = problem()

    def work(device: str) -> Any:
        there = replace(features, device=device)
        recipe = options(name, STEPS.get(name, 5))
        run = forecast_frozen(there, recipe, dtype=torch.float64)
        _, heldout = token_spaces(there, recipe, torch.float64)
        whole = attribute(there, recipe)[recipe.steps]
        top = whole.top(heldout, 3)
        known = sensitivity(there, recipe)
        return [
            [(each.margins, each.chosen) for each in (run.train, run.heldout)],
            run.attribution(0).values,
            [whole.contributions(heldout), whole.margins(heldout), top.values, top.positive, top.rest],
            [known.values, known.weights, known.twins],
        ]

    same_there(work)
