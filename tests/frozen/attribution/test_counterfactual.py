"""Edited data run again is what PyTorch does with it; derivatives are those of finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.attribution.counterfactual import counterfactuals, direct_change, predict_edits, rerun
from margincast.frozen.attribution.edits import Edit, drop, duplicate, edited, flip
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.forecast import forecast_frozen
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe
from tests.frozen.test_forecast import problem
from tests.oracles import train_head
from tests.recipes import head_recipe
from tests.tolerances import TOLERANCE, error

RUN = TOLERANCE[torch.float64].run
PAIRS = 10
NO_FLIP = torch.zeros(PAIRS, dtype=torch.bool)
EDITS = {
    "drop": (drop(PAIRS, [1, 7]), [0, 2, 3, 4, 5, 6, 8, 9], []),
    "flip": (flip(PAIRS, [4]), list(range(10)), [4]),
    "duplicate": (duplicate(PAIRS, [3, 8]), [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9], []),
    "all at once": (
        Edit(torch.tensor([1.0, 0, 2, 1, 3, 1, 1, 0, 1, 1]).double(), torch.arange(PAIRS) == 2),
        [0, 2, 2, 3, 4, 4, 4, 5, 6, 8, 9],
        [1, 2],
    ),
}
RUNS: dict[str, tuple[Optimizer | GradientFlow, dict[str, Any]]] = {
    "gd": (GradientDescent(0.8), {}),
    "gd clipped": (GradientDescent(0.8, momentum=0.8), {"max_grad_norm": 0.1}),
    "sgd": (SGD(0.8, weight_decay=0.05, momentum=0.9, nesterov=True), {"lr_scheduler_type": "cosine"}),
    "adamw": (AdamW(0.05, weight_decay=0.1), {"max_grad_norm": 0.2}),
    "adam without a reference": (AdamW(0.05), {"loss_type": "simpo", "gradient_accumulation_steps": 2}),
    "flow": (GradientFlow(0.8), {}),
    "flow without a reference": (GradientFlow(0.8), {"loss_type": "simpo"}),
}


def options(name: str) -> dict[str, Any]:
    optimizer, more = RUNS[name]
    return {"beta": 0.5, "optimizer": optimizer, "steps": 7, "batch_size": 4, "eval_steps": 7, **more}


@pytest.mark.parametrize("edit, rows, turned", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("full", [True, False], ids=["gd", "adam in minibatches"])
def test_a_rerun_is_a_pytorch_head_trained_on_the_edited_data(
    edit: Edit, rows: list[int], turned: list[int], full: bool
) -> None:
    unembedding, features = problem()
    train, heldout = token_spaces(features, Recipe(beta=0.5))
    chosen, rejected = train.chosen[rows], train.rejected[rows]
    chosen[turned], rejected[turned] = rejected[turned], chosen[turned].clone()
    data = TokenSpace(train.features[rows], chosen, rejected, 0.5, train.tokens)
    batches = full_batch(len(rows), 9) if full else batch_order(len(rows), 4, 9, 3)
    real, _ = train_head(
        unembedding, data, heldout, features.tokens.tolist(), batches,
        lambda p: torch.optim.SGD(p, 0.4) if full else torch.optim.Adam(p, 0.05),
        max_grad_norm=1.0,
    )  # fmt: skip
    optimizer = GradientDescent(0.4) if full else AdamW(0.05)
    again = rerun(features, edit, head_recipe(beta=0.5, optimizer=optimizer, steps=9, batch_size=4, seed=3))
    assert error(again.heldout.margins[-1], real[-1]) <= RUN
    assert len(again.train.pairs) == len(rows)
    assert len({pair.id for pair in again.train.pairs}) == len(rows)


def test_edited_pairs_say_what_was_trained_on() -> None:
    _, features = problem()
    new = edited(features, EDITS["all at once"][0]).train
    old = features.train
    assert [pair.id for pair in new.pairs[:4]] == ["p0", "p2", "p2#2", "p3"]
    assert new.pairs[1].chosen == old.pairs[2].rejected
    assert new.pairs[0].chosen == old.pairs[0].chosen
    assert new.reference_chosen[2] == old.reference_rejected[2]
    assert new.chosen_ids[2] == old.rejected_ids[2]


@pytest.mark.parametrize("name", RUNS)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    _, features = problem()
    found = sensitivity(features, head_recipe(**options(name)))
    step = 1e-4
    for row in (0, 6):
        one = torch.zeros(PAIRS, dtype=torch.float64)
        one[row] = step
        sides = [reweighed(features, Edit(1.0 + sign * one, NO_FLIP), head_recipe(**options(name))) for sign in (1, -1)]
        numeric = (sides[0] - sides[1]) / (2 * step)
        assert (numeric - found.weights[:, row]).abs().max() <= 1e-6 * found.weights.abs().max()
    assert (
        error(
            found.values, reweighed(features, Edit(torch.ones(PAIRS).double(), NO_FLIP), head_recipe(**options(name)))
        )
        == 0.0
    )


@pytest.mark.parametrize("name", ["gd", "gd clipped", "flow"])
def test_derivatives_to_flipped_twins_are_those_of_twins_in_the_data(name: str) -> None:
    """Every pair once more, flipped, with weight 0: what a little weight there does, one-sided to third order."""
    _, features = problem()
    both = edited(features, Edit(torch.full((PAIRS,), 2.0).double(), NO_FLIP))  # each pair, then its copy
    turned = edited(both, flip(2 * PAIRS, range(1, 2 * PAIRS, 2)))
    found = sensitivity(features, head_recipe(**options(name)))

    def at(row: int, weight: float) -> Tensor:
        weights = torch.tensor([1.0, 0.0] * PAIRS).double()
        weights[2 * row + 1] = weight
        return reweighed(turned, Edit(weights, torch.zeros(2 * PAIRS, dtype=torch.bool)), head_recipe(**options(name)))

    step = 1e-4
    for row in (2, 9):
        slope = (18 * at(row, step) - 9 * at(row, 2 * step) + 2 * at(row, 3 * step) - 11 * at(row, 0.0)) / (6 * step)
        assert (slope - found.twins[:, row]).abs().max() <= 1e-6 * found.twins.abs().max()


@pytest.mark.parametrize("name", ["gd", "gd clipped", "flow", "flow without a reference"])
@pytest.mark.parametrize("edit", [edit for edit, *_ in EDITS.values()], ids=EDITS)
def test_on_full_batches_weighing_pairs_is_editing_the_data(name: str, edit: Edit) -> None:
    _, features = problem()
    tolerance = 1e-6 if name.startswith("flow") else RUN
    expected = rerun(features, edit, head_recipe(**options(name))).heldout.margins[-1]
    assert error(reweighed(features, edit, head_recipe(**options(name))), expected) <= tolerance


def test_derivatives_of_any_number_follow_from_those_of_the_margins() -> None:
    _, features = problem()
    each = sensitivity(features, head_recipe(**options("gd")))
    mean = sensitivity(features, head_recipe(**options("gd")), lambda r: torch.stack([r.mean(), r.sigmoid().mean()]))
    assert error(mean.weights[0], each.weights.mean(dim=0)) <= RUN
    chain = each.values.sigmoid() * (-each.values).sigmoid() / len(each.values)
    assert error(mean.flips[1], chain @ each.flips) <= RUN


def test_the_record_sets_prediction_beside_the_run() -> None:
    _, features = problem()
    settings = {"beta": 0.5, "optimizer": GradientFlow(0.05), "steps": 5, "eval_steps": 5}
    edit = drop(PAIRS, [3])
    (found,) = counterfactuals(features, [edit], head_recipe(**settings))
    run, again = forecast_frozen(features, head_recipe(**settings)), rerun(features, edit, head_recipe(**settings))
    assert error(found.before, run.heldout.margins[-1]) <= 1e-7
    assert found.margin.rerun == pytest.approx(
        float((again.heldout.margins[-1] - run.heldout.margins[-1]).mean()), rel=1e-5
    )
    # A single pair of ten at small margins: first order is right to second order in 1/10.
    assert found.margin.predicted == pytest.approx(found.margin.rerun, rel=0.2)
    assert found.mean_loss.predicted == pytest.approx(found.mean_loss.rerun, rel=0.2)
    assert found.accuracy.before == float((run.heldout.margins[-1] > 0).double().mean())
    assert found.spearman > 0.9
    assert found.max_abs_difference < 0.2 * float((again.heldout.margins[-1] - run.heldout.margins[-1]).abs().max())


def test_the_direct_change_is_minus_the_contributions() -> None:
    _, features = problem()
    run = forecast_frozen(features, head_recipe(**options("gd")))
    _, heldout = token_spaces(features, Recipe(beta=0.5))
    contributions = run.attributed().contributions(heldout)
    for edit, factors in [
        (drop(PAIRS, [3]), {3: -1.0}),
        (flip(PAIRS, [3, 4]), {3: -2.0, 4: -2.0}),
        (duplicate(PAIRS, [5]), {5: 1.0}),
    ]:
        expected = sum(factor * contributions[:, row] for row, factor in factors.items())
        assert isinstance(expected, Tensor)
        assert error(direct_change(run.attributed(), heldout, edit), expected) <= 1e-12


def test_edits_that_make_no_sense_are_refused() -> None:
    _, features = problem()
    with pytest.raises(InputError, match=r"rows of an edit must lie in 0 .. 9"):
        drop(PAIRS, [10])
    with pytest.raises(InputError, match="leaves no pair to train on"):
        drop(PAIRS, range(PAIRS))
    with pytest.raises(InputError, match=r"pair 1 has -1.0"):
        Edit(torch.tensor([1.0, -1.0]), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(InputError, match="a weight and a truth value"):
        Edit(torch.ones(2), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(InputError, match="the edit is of 3 training pairs, and there are 10"):
        rerun(features, drop(3, [0]), head_recipe())
    with pytest.raises(InputError, match="a whole number of times"):
        rerun(features, Edit(torch.full((PAIRS,), 0.5), NO_FLIP), head_recipe())
    with pytest.raises(InputError, match="leave the functional out"):
        counterfactuals(
            features, [], head_recipe(), first_order=sensitivity(features, head_recipe(steps=1), torch.Tensor.mean)
        )


def test_with_adam_edits_of_single_tokens_are_predicted_by_the_run_in_its_own_batches() -> None:
    _, features = problem()
    recipe = head_recipe(optimizer=AdamW(0.05), steps=5, batch_size=4)
    edits = [drop(len(features.train.pairs), [2]), flip(len(features.train.pairs), [0, 3])]
    found = predict_edits(features, edits, recipe, torch.mean)
    expected = [reweighed(features, edit, recipe).mean() for edit in edits]
    assert torch.equal(found.edited[:, 0], torch.stack(expected))
    assert float(found.values) == pytest.approx(float(forecast_frozen(features, recipe).heldout.margins[-1].mean()))
