"""A run from a trained adapter, whose reference is the model without: its margins do not start at 0."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from margincast.errors import InputError
from margincast.features import extract_features
from margincast.forecasting import forecast
from margincast.frozen.attribution.edits import Edit
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.engine.pairspace import simulate_in
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.step import simulate
from margincast.frozen.forecast import forecast_frozen
from margincast.models import load_model
from margincast.models.load import LoadedModel
from margincast.passes.evaluate import Evaluator
from margincast.passes.tokenize import encode
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet
from margincast.trained.forecast import TrainedForecast
from margincast.trained.inputs import start_of
from margincast.trained.rehearsal import rehearse
from margincast.trained.trained_run import TrainedRun
from margincast.training.run import train_model
from tests.models.test_adapters import HELDOUT, TRAIN, adapted
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tolerances import TOLERANCE, error

BETA = 0.5
SHORT = {"beta": BETA, "max_steps": 4, "eval_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 5e-2}
DOUBLE = TOLERANCE[torch.float64].run


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Of a model with a trained adapter, in float64; what the policy says at the start is that of its head."""
    cache = tmp_path_factory.mktemp("cache")
    found = extract_features((adapted(trained=True), tiny_tokenizer()), TRAIN, HELDOUT, cache_dir=cache, layers=True)
    head = tiny_model().lm_head.weight.detach().double()

    def exact(split: FeatureSet) -> FeatureSet:
        hidden = split.hidden.double()
        chosen, rejected = says(hidden, head, split)
        assert (
            error(torch.stack(split.policy_logps), torch.stack([chosen, rejected])) <= TOLERANCE[torch.float32].forward
        )
        return replace(split, hidden=hidden, start_chosen=chosen, start_rejected=rejected)

    return replace(
        found, train=exact(found.train), heldout=exact(found.heldout), unembedding=found.unembedding.double()
    )


def says(hidden: Tensor, head: Tensor, split: FeatureSet, rows: Any = slice(None)) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both responses by a head over the vocabulary."""
    logps = torch.log_softmax(hidden[rows] @ head.T, dim=-1)
    chosen, rejected = (torch.tensor(ids)[rows] for ids in (split.chosen_ids, split.rejected_ids))
    return logps.gather(1, chosen).squeeze(1), logps.gather(1, rejected).squeeze(1)


def head_trained(features: Features, recipe: Recipe, make: Any) -> tuple[Tensor, Tensor]:
    """(steps + 1, held-out pairs) margins and chosen rewards of a head that PyTorch trains against the reference that
    the features name."""
    head = tiny_model().lm_head.weight.detach().double().requires_grad_()
    optimizer = make([head])

    def rewards(split: FeatureSet, rows: Any = slice(None)) -> tuple[Tensor, Tensor]:
        chosen, rejected = says(split.hidden, head, split, rows)
        free = recipe.loss.reference_free
        before = (0.0, 0.0) if free else (split.reference_chosen[rows], split.reference_rejected[rows])
        return BETA * (chosen - before[0]), BETA * (rejected - before[1])

    recorded = [rewards(features.heldout)]
    for step, batch in enumerate(recipe.batches(len(features.train.pairs))):
        optimizer.zero_grad()
        chosen, rejected = rewards(features.train, batch.rows)
        (batch.weights * recipe.loss.value(chosen - rejected)).sum().backward()
        torch.nn.utils.clip_grad_norm_([head], recipe.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.factor(step)
        optimizer.step()
        recorded.append(rewards(features.heldout))
    chosen, rejected = (torch.stack(side).detach() for side in zip(*recorded, strict=True))
    return chosen - rejected, chosen


RULES = {
    "sgd": (Recipe(train="head", optimizer="sgd", **SHORT), lambda p: torch.optim.SGD(p, 1.0)),
    "adamw": (Recipe(train="head", weight_decay=0.1, **SHORT), lambda p: torch.optim.AdamW(p, weight_decay=0.1)),
    "simpo": (Recipe(train="head", loss_type="simpo", **SHORT), lambda p: torch.optim.AdamW(p, weight_decay=0.0)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_forecast_is_a_head_trained_against_the_model_without_the_adapter(name: str, features: Features) -> None:
    recipe, make = RULES[name]
    found = forecast(features, recipe)
    margins, chosen = head_trained(features, recipe, make)
    at = list(recipe.recorded)
    assert float(margins[0].abs().max()) > 0.1
    assert error(found.heldout.margins, margins[at]) <= DOUBLE
    if found.heldout.chosen is not None:
        assert error(found.heldout.chosen, chosen[at]) <= DOUBLE
    # The parts of training pairs and where each margin began are the margin.
    _, targets = token_spaces(features, recipe)
    sums = found.attributed()
    assert error(sums.contributions(targets).sum(dim=1) + sums.start(targets), margins[-1]) <= 1e-8
    assert error(sums.margins(targets), margins[-1]) <= 1e-8
    if recipe.loss.reference_free or recipe.rule.decay:
        return
    assert error(sums.start(targets), margins[0]) <= DOUBLE


def test_the_flow_begins_there_and_is_the_limit_of_small_steps(features: Features) -> None:
    settings = {"train": "head", "beta": BETA, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    flow = forecast_frozen(features, Recipe(optimizer="flow", max_steps=10, learning_rate=0.02, **settings))
    fine = forecast_frozen(features, Recipe(optimizer="gd", max_steps=1000, learning_rate=2e-4, **settings))
    start = BETA * start_of(Recipe(train="head"), features.heldout)
    for run in (flow, fine):
        assert error(run.heldout.margins[0], start) <= DOUBLE
    assert error(flow.heldout.margins[-1], fine.heldout.margins[-1]) <= 1e-4
    assert error(flow.heldout.margins[-1], start) > 0.01


@pytest.mark.parametrize("name", ["sgd", "adamw", "flow"])
def test_derivatives_by_a_pairs_weight_are_differences_of_runs(name: str, features: Features) -> None:
    recipe = Recipe(train="head", optimizer="flow", max_steps=2, beta=BETA) if name == "flow" else RULES[name][0]
    found = sensitivity(features, recipe)
    assert error(found.values, forecast_frozen(features, recipe).heldout.margins[-1]) <= 1e-6
    runs = []
    for step in (1e-4, -1e-4):
        weights = torch.ones(len(features.train.pairs), dtype=torch.float64)
        weights[1] += step
        runs.append(reweighed(features, Edit(weights, torch.zeros(len(weights)).bool()), recipe))
    assert error(found.weights[:, 1], (runs[0] - runs[1]) / 2e-4) <= 1e-4


def test_every_form_of_a_run_starts_there(features: Features) -> None:
    recipe = RULES["sgd"][0]
    space, _ = token_spaces(features, recipe)
    runs = {}
    for form in ("token", "pair", "factor"):
        run = simulate_in(
            form, space, recipe.rule, recipe.batches(len(space)), unembedding=features.unembedding, loss=recipe.loss
        )
        *_, runs[form] = run
    assert max(error(runs["token"], runs[form]) for form in ("pair", "factor")) <= DOUBLE
    *_, from_reference = simulate(
        replace(space, start=None), recipe.rule, recipe.batches(len(space)), unembedding=features.unembedding
    )
    assert error(runs["token"], from_reference) > 0.01


@pytest.mark.parametrize("train", ["head", "all", "lora"])
def test_a_run_begins_at_the_log_ratios_and_keeps_its_reference(train: str, tmp_path: Path) -> None:
    tokenizer, policy = tiny_tokenizer(), adapted(trained=True).eval()
    loaded = load_model((copy.deepcopy(policy), tokenizer))
    found = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "cache")
    encoding = encode(type(TRAIN)(TRAIN.pairs + HELDOUT.pairs), tokenizer)
    recipe = Recipe(train=train, **{**SHORT, "learning_rate": 1e-2})
    lines: list[str] = []
    run = train_model(loaded, encoding, found, recipe, tmp_path / "run", say=lines.append)
    assert ["trains on" in line for line in lines] == [True] * (train == "lora")

    def ratios(model: Any) -> Tensor:
        chosen, rejected = Evaluator(encoding.select(HELDOUT).rows, True, frozen_backbone=False)(model)
        return chosen - rejected

    reference = ratios(tiny_model())
    near = TOLERANCE[torch.float32].run
    assert error(run.heldout.margins[0], BETA * (ratios(policy) - reference)) <= near
    end = run.heldout.margins[-1]
    assert error(end, run.heldout.margins[0]) > 0.01
    # What was saved is the model that was recorded.
    kept = tmp_path / "run" / "model"
    saved: Any
    if train == "lora":
        saved = PeftModel.from_pretrained(tiny_model(), kept).eval()
        assert saved.peft_config["default"].r == 3  # the adapter that was there, not a second one
    else:
        saved = load_model(kept).model
    assert error(BETA * (ratios(saved) - reference), end) <= near
    if train == "head":
        assert error(run.heldout.margins, forecast_frozen(found, recipe).heldout.margins) <= near


def test_a_fitted_forecast_begins_there_says_so_and_rehearses_what_train_trains(features: Features) -> None:
    recipe = Recipe(max_steps=4, beta=BETA, per_device_train_batch_size=4, learning_rate=1e-5)
    loaded = LoadedModel("adapted", "adapted", adapted(trained=True).eval(), tiny_tokenizer())
    encoding = encode(type(TRAIN)(TRAIN.pairs + HELDOUT.pairs), loaded.tokenizer)
    policy, heldout = features.heldout.policy_logps, features.heldout
    start = BETA * (policy[0] - heldout.reference_chosen - policy[1] + heldout.reference_rejected)
    rehearsal = rehearse(loaded, encoding, features, replace(recipe, learning_rate=1e-9), 2, 4)
    assert float(rehearsal.heldout.abs().max()) <= 1e-4  # of a run that hardly moves: how far it moves, not where it is
    ratios = features.train.start_log_ratios
    assert ratios is not None
    pull = torch.sigmoid(-BETA * (ratios[0] - ratios[1])).mean() / 0.5
    for train in ("all", "lora"):
        run = replace(recipe, train=train)
        for given in (None, rehearse(loaded, encoding, features, run, 2, 4)):
            found = forecast(features, run, rehearsal=given)
            assert isinstance(found, TrainedForecast) and found.begun is not None
            assert error(found.heldout.margins[0], start) <= DOUBLE
            assert (found.begun.lowest, found.begun.highest) == pytest.approx((float(start.min()), float(start.max())))
            assert found.begun.pull == pytest.approx(float(pull))
            assert found.begun.trains_on == (train == "lora")
    with pytest.raises(InputError, match=r"trained on.*fresh.*merged"):
        TrainedRun(features, replace(recipe, train="lora"), forecast(features, recipe))


@pytest.mark.parametrize("train", ["all", "lora"])
def test_a_rehearsal_of_every_step_is_the_run(train: str, tmp_path: Path) -> None:
    """As many steps of the same pairs: it trains what `train` trains, from there, against the same reference."""
    tokenizer, policy = tiny_tokenizer(), adapted(trained=True).eval()
    found = extract_features((policy, tokenizer), TRAIN, HELDOUT, cache_dir=tmp_path / "cache")
    encoding = encode(type(TRAIN)(TRAIN.pairs + HELDOUT.pairs), tokenizer)
    whole = len(TRAIN)
    recipe = Recipe(train=train, **{**SHORT, "learning_rate": 1e-2, "per_device_train_batch_size": whole})
    loaded = load_model((policy, tokenizer))
    rehearsal = rehearse(loaded, encoding, found, recipe, recipe.max_steps or 0, whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train_model(load_model((copy.deepcopy(policy), tokenizer)), encoding, found, recipe, tmp_path / "run")
    change = run.heldout.margins[-1] - run.heldout.margins[0]
    assert error(rehearsal.heldout, change) <= 1e-3
    assert error(change, torch.zeros_like(change)) > 0.01
