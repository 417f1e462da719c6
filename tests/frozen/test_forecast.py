"""The whole forecast against training a V x d head: margins, chosen rewards, recorded steps, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from margincast.errors import InputError
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.forecast import forecast_frozen
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe, recorded_steps
from margincast.records import Features
from tests.oracles import train_head
from tests.problems import make_features
from tests.recipes import head_recipe
from tests.tolerances import TOLERANCE, error

RUN = TOLERANCE[torch.float64].run
VOCABULARY, HIDDEN, PAIRS, HELDOUT = 17, 5, 14, 4


def problem(scale: float = 1.0, vocabulary: int = VOCABULARY) -> tuple[torch.Tensor, Features]:
    generator = torch.Generator().manual_seed(0)
    unembedding = torch.randn(vocabulary, HIDDEN, generator=generator, dtype=torch.float64)
    hidden = torch.randn(PAIRS, HIDDEN, generator=generator, dtype=torch.float64)
    chosen = torch.tensor([3, 11, 3, 0, 11, 3, 3, 16, 11, 3, 11, 3, 0, 3]) % vocabulary
    rejected = torch.tensor([11, 3, 11, 16, 3, 11, 11, 0, 3, 11, 3, 11, 16, 11]) % vocabulary
    return unembedding, make_features(unembedding, hidden, chosen, rejected, HELDOUT, scale)


def trained(unembedding: torch.Tensor, features: Features, batches: Any, optimizer: Any, clip: float) -> Any:
    train, heldout = token_spaces(features, Recipe(beta=0.5))
    return train_head(unembedding, train, heldout, features.tokens.tolist(), batches, optimizer, max_grad_norm=clip)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (AdamW(0.05), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.0, eps=1e-8)),
        (SGD(0.4), lambda p: torch.optim.SGD(p, 0.4)),
    ],
    ids=["adam", "sgd"],
)
def test_margins_and_chosen_rewards_are_those_of_a_trained_head(ours: Any, theirs: Any, scale: float) -> None:
    unembedding, features = problem(scale)
    run = forecast_frozen(
        features, head_recipe(beta=0.5, optimizer=ours, steps=12, batch_size=4, seed=3, eval_steps=5, max_grad_norm=0.3)
    )
    batches = batch_order(PAIRS - HELDOUT, 4, 12, 3)
    margins, chosen = trained(unembedding, features, batches, theirs, 0.3)
    assert run.steps == (0, 5, 10, 12)
    at = [step - 1 for step in run.steps[1:]]
    assert error(run.heldout.margins[1:], margins[at]) <= RUN
    assert run.heldout.chosen is not None
    # A row that no response uses has a gradient of rounding size, which Adam enlarges to lr * g / eps.
    assert error(run.heldout.chosen[1:], chosen[at]) <= 1e-7
    assert run.heldout.margins[0].tolist() == [0.0] * HELDOUT
    assert run.heldout.chosen[0].tolist() == [0.0] * HELDOUT


def test_chosen_rewards_hold_when_every_token_of_the_vocabulary_is_a_response() -> None:
    """All probability is on the tokens that move: the largest change of the normaliser there can be."""
    unembedding, features = problem(vocabulary=2)
    run = forecast_frozen(features, head_recipe(beta=0.5, optimizer=GradientDescent(20.0), steps=30, max_grad_norm=0.0))
    batches = full_batch(PAIRS - HELDOUT, 30)
    _, chosen = trained(unembedding, features, batches, lambda p: torch.optim.SGD(p, 20.0), 1e30)
    assert run.heldout.chosen is not None
    assert error(run.heldout.chosen[-1], chosen[-1]) <= RUN


def test_weight_decay_keeps_margins_and_withholds_chosen_rewards() -> None:
    unembedding, features = problem()
    run = forecast_frozen(
        features, head_recipe(beta=0.5, optimizer=AdamW(0.05, weight_decay=0.5), steps=9, batch_size=4, seed=3)
    )
    batches = batch_order(PAIRS - HELDOUT, 4, 9, 3)
    margins, _ = trained(unembedding, features, batches, lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.5), 1.0)
    assert error(run.heldout.margins[-1], margins[-1]) <= RUN
    assert run.train.chosen is None
    assert run.heldout.chosen is None


def test_the_flow_is_the_limit_of_many_small_steps() -> None:
    _, features = problem()
    flow = forecast_frozen(features, head_recipe(beta=0.5, optimizer=GradientFlow(0.5), steps=20, eval_steps=10))
    small = forecast_frozen(
        features,
        head_recipe(beta=0.5, optimizer=GradientDescent(0.5e-3), steps=20_000, eval_steps=10_000, max_grad_norm=0.0),
    )
    assert flow.steps == (0, 10, 20)
    assert error(small.heldout.margins, flow.heldout.margins) <= 1e-3


def test_recorded_steps_hold_the_first_and_the_last() -> None:
    assert recorded_steps(10, 4) == (0, 4, 8, 10)
    assert recorded_steps(8, 4) == (0, 4, 8)
    assert recorded_steps(3, 10) == (0, 3)
    assert recorded_steps(0, 10) == (0,)


def test_how_often_steps_are_recorded_changes_no_number() -> None:
    _, features = problem()
    often, seldom = (
        forecast_frozen(features, head_recipe(steps=12, eval_steps=every, batch_size=4)) for every in (1, 12)
    )
    assert torch.equal(often.heldout.margins[-1], seldom.heldout.margins[-1])
    assert torch.equal(often.train.margins[-1], seldom.train.margins[-1])


def test_float32_stays_within_the_tables_tolerance() -> None:
    _, features = problem()
    wide, narrow = (
        forecast_frozen(features, head_recipe(optimizer=AdamW(1e-2), beta=0.1, steps=12, batch_size=4), dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    assert narrow.heldout.margins.dtype == torch.float32
    assert error(narrow.heldout.margins, wide.heldout.margins) <= TOLERANCE[torch.float32].run


def test_features_the_equations_do_not_cover_are_refused() -> None:
    _, features = problem()
    capped = dataclasses.replace(features, logits="soft-capped at 30")
    with pytest.raises(InputError, match=r"logits of a made head are soft-capped at 30.*use a model without"):
        forecast_frozen(capped, head_recipe())
    long = dataclasses.replace(features.heldout, chosen_ids=((1, 2), *features.heldout.chosen_ids[1:]))
    with pytest.raises(InputError, match=r"more than one token.*forecast_tokens"):
        forecast_frozen(dataclasses.replace(features, heldout=long), head_recipe())
    hidden = features.train.hidden.clone()
    hidden[2, 1] = float("nan")
    broken = dataclasses.replace(features.train, hidden=hidden)
    with pytest.raises(InputError, match="features of training pair p2 are not finite"):
        forecast_frozen(dataclasses.replace(features, train=broken), head_recipe())
    with pytest.raises(InputError, match="loss_type 'sigmoidal' is not known"):
        forecast_frozen(features, head_recipe(loss_type="sigmoidal"))


def test_features_as_large_as_a_share_of_memory_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are stored and without a copy, so that a mapped file is read as it is used; else in float64."""
    _, features = problem()
    single = dataclasses.replace(
        features,
        train=dataclasses.replace(features.train, hidden=features.train.hidden.float()),
        heldout=dataclasses.replace(features.heldout, hidden=features.heldout.hidden.float()),
    )
    recipe = head_recipe(beta=0.5, optimizer=SGD(0.4), steps=6, batch_size=4)
    exact = forecast_frozen(single, recipe)
    assert exact.dtype == torch.float64
    monkeypatch.setattr("margincast.frozen.engine.spaces.MEMORY_SHARE", 0.0)
    train, _ = token_spaces(single, Recipe(beta=0.5))
    assert train.features.data_ptr() == single.train.hidden.data_ptr()
    large = forecast_frozen(single, recipe)
    assert large.dtype == torch.float32
    assert error(large.heldout.margins, exact.heldout.margins) <= TOLERANCE[torch.float32].run
    assert error(large.attribution(pair=1).values.sum(), large.heldout.margins[-1, 1]) <= TOLERANCE[torch.float32].run
