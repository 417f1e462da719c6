"""Contributions to margins of many tokens sum to them, and are what plain loops say they are; so are derivatives."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.features.positions import Positions, TokenFeatures
from margincast.forecasting import forecast
from margincast.frozen.attribution.counterfactual import counterfactuals, predict_edits, rerun
from margincast.frozen.attribution.edits import Edit, drop, duplicate, edited, flip
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.tokens import edited_run, replay
from margincast.frozen.tokens.attribution import mean_softmax
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.frozen.tokens.replay import Moment, backwards
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet
from tests.frozen.test_forecast import problem
from tests.frozen.tokens.test_decomposition import draw_features, logps
from tests.problems import make_pairs
from tests.recipes import head_recipe
from tests.tolerances import TOLERANCE, error

BETA, PAIRS, HELDOUT, VOCABULARY, WIDTH = 0.5, 7, 4, 13, 5
RUN = TOLERANCE[torch.float64].run
SCHEDULED = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_grad_norm": 0.2}
RUNS: dict[str, tuple[Optimizer | GradientFlow, dict[str, Any]]] = {
    "gd": (GradientDescent(0.8), {}),
    "gd of a loss with a kink": (GradientDescent(0.8), {"loss_type": "hinge"}),
    "sgd, scheduled and clipped": (SGD(0.8), SCHEDULED),
    "sgd, accumulated": (SGD(0.8), {"gradient_accumulation_steps": 2, "loss_type": "squared"}),
    "sgd decay": (SGD(0.8, weight_decay=0.05), {}),
    "momentum": (SGD(0.5, momentum=0.9), SCHEDULED),
    "nesterov decay": (SGD(0.5, momentum=0.7, nesterov=True, weight_decay=0.05), SCHEDULED | {"loss_type": "cdpo"}),
    "adam, scheduled and clipped": (AdamW(0.05, 0.7, 0.95, 1e-4), SCHEDULED),
    "adamw": (AdamW(0.05, weight_decay=0.3), {"gradient_accumulation_steps": 2, "loss_type": "exponential"}),
    "flow": (GradientFlow(0.05), {"loss_type": "savage"}),
}


@cache
def positions() -> Positions:
    generator = torch.Generator().manual_seed(0)
    pairs = make_pairs(PAIRS + HELDOUT).pairs
    train, heldout = (draw_features(generator, VOCABULARY, WIDTH, count, 5) for count in (PAIRS, HELDOUT))
    unembedding = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    return Positions(train, heldout, PairSet(pairs[:PAIRS]), PairSet(pairs[PAIRS:]), unembedding, None, "drawn")


def options(name: str, steps: int = 6) -> Recipe:
    optimizer, more = RUNS[name]
    return head_recipe(beta=BETA, optimizer=optimizer, steps=steps, batch_size=3, eval_steps=4, **more)


@pytest.mark.parametrize(
    "name, dtype, tolerance",
    # The flow's local error is below what float32 can tell.
    [(name, torch.float64, 1e-9) for name in RUNS] + [(name, torch.float32, 1e-4) for name in RUNS if name != "flow"],
)
def test_contributions_sum_to_the_margins(name: str, dtype: torch.dtype, tolerance: float) -> None:
    recipe = options(name)
    run = forecast_positions(positions(), recipe, dtype=dtype)
    targets = [run.target(k) for k in range(HELDOUT)] + [run.target(2, split="train"), run.target()]
    for step in run.steps:
        found = run.attributions(targets, step=step)
        margins = torch.tensor([each.margin for each in found], dtype=torch.float64)
        sums = torch.stack([each.values.sum() + each.start for each in found])
        assert error(sums, margins) <= tolerance
        # The mean of contributions to single pairs is what is contributed to their mean.
        assert error(torch.stack([each.values for each in found[:HELDOUT]]).mean(0), found[-1].values) <= 10 * tolerance
        assert all(each.start == 0.0 for each in found) == (not recipe.rule.decay or step == 0)
    assert max(abs(each.margin) for each in found) > 0.02


def pair_gradients(features: TokenFeatures, weight: Tensor, start: Tensor, recipe: Recipe, shares: Tensor) -> Tensor:
    """(N, V, d) of every pair's part of a step's gradient, by autodiff."""
    weight = weight.clone().requires_grad_(True)
    rewards = BETA * features.per_response(logps(features, weight) - logps(features, start))
    losses = shares * recipe.loss.value(rewards[:, 0] - rewards[:, 1])
    return torch.stack([torch.autograd.grad(each, weight, retain_graph=True)[0] for each in losses])


def unrolled(recipe: Recipe, split: Positions) -> list[tuple[Tensor, Tensor]]:
    """W after every step and every pair's part in it, (N, V, d), from optimizers written out in plain loops: pushes,
    clipping and Adam's divisor as the run had them, a recursion for every pair's part of it."""
    start, optimizer = split.unembedding, recipe.rule
    weight, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    parts = first_parts = torch.zeros(PAIRS, *start.shape, dtype=torch.float64)
    states = [(weight, parts)]
    for k, batch in enumerate(recipe.batches(PAIRS)):
        shares = torch.zeros(PAIRS, dtype=torch.float64).index_add_(0, batch.rows, batch.weights)
        each = pair_gradients(split.train, weight, start, recipe, shares)
        if recipe.max_grad_norm:
            each = each * min(1.0, float(recipe.max_grad_norm / (each.sum(0).norm() + 1e-6)))
        whole, rate = each.sum(0), optimizer.learning_rate * recipe.factor(k)
        if isinstance(optimizer, SGD):
            whole, each = whole + optimizer.weight_decay * weight, each + optimizer.weight_decay * parts
            first, first_parts = optimizer.momentum * first + whole, optimizer.momentum * first_parts + each
            if optimizer.nesterov:
                whole, each = whole + optimizer.momentum * first, each + optimizer.momentum * first_parts
            else:
                whole, each = first, first_parts
            weight, parts = weight - rate * whole, parts - rate * each
        else:
            assert isinstance(optimizer, AdamW)
            first = optimizer.beta1 * first + (1 - optimizer.beta1) * whole
            first_parts = optimizer.beta1 * first_parts + (1 - optimizer.beta1) * each
            second = optimizer.beta2 * second + (1 - optimizer.beta2) * whole**2
            divisor = (second / (1 - optimizer.beta2 ** (k + 1))).sqrt() + optimizer.eps
            keep, scale = 1 - rate * optimizer.weight_decay, rate / (1 - optimizer.beta1 ** (k + 1))
            weight, parts = keep * weight - scale * first / divisor, keep * parts - scale * first_parts / divisor
        states.append((weight, parts))
    return states


@pytest.mark.parametrize("name", [name for name in RUNS if name != "flow"])
def test_contributions_are_integrals_along_the_way(name: str) -> None:
    """<grad m(W), dW_i> along the line from a recorded step to the next, in many small pieces, by autodiff."""
    recipe, split = options(name), positions()
    run = forecast_positions(split, recipe, dtype=torch.float64)
    states = unrolled(recipe, split)
    target = split.heldout.select(torch.tensor([1]))
    expected = torch.zeros(PAIRS, dtype=torch.float64)
    for low, high in zip(run.steps, run.steps[1:], strict=False):
        (start, before), (end, after) = states[low], states[high]
        for piece in range(40):
            weight = (start + (piece + 0.5) / 40 * (end - start)).requires_grad_(True)
            (BETA * (logps(target, weight) * target.sign).sum()).backward()
            assert weight.grad is not None
            expected += ((after - before) * weight.grad).sum((1, 2)) / 40
    found = run.attribution(1)
    assert error(found.values, expected) <= 1e-5
    margin = BETA * ((logps(target, states[-1][0]) - logps(target, split.unembedding)) * target.sign).sum()
    assert found.margin == pytest.approx(float(margin), rel=1e-9)


@pytest.mark.parametrize("rate", [1e-7, 1e-3])
def test_small_margins_are_not_lost_in_float32(rate: float) -> None:
    recipe = head_recipe(beta=0.1, optimizer=AdamW(rate), steps=4, batch_size=7)
    quick, exact = (forecast_positions(positions(), recipe, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert error(quick.heldout.margins[-1], exact.heldout.margins[-1]) <= 1e-5
    assert error(quick.attribution().values, exact.attribution().values) <= 1e-4


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_mean_softmax_is_a_discrete_gradient(scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(6, 11, generator=generator, dtype=torch.float64)
    moves = scale * torch.randn(6, 11, generator=generator, dtype=torch.float64)
    mean = mean_softmax(logits, moves + shift)
    growth = torch.logsumexp(logits + moves + shift, 1) - torch.logsumexp(logits, 1)
    assert error((mean * (moves + shift)).sum(1), growth) <= 1e-13 * max(1.0, 1e-2 / scale if not shift else 1.0)
    assert error(mean.sum(1), torch.ones(6, dtype=torch.float64)) <= 1e-14


def test_the_mean_softmax_is_that_of_the_way_to_fourth_order() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, moves = torch.randn(2, 6, 11, generator=generator, dtype=torch.float64)
    gaps = []
    for scale in (1.0, 0.5, 0.25):
        along = torch.stack([torch.softmax(logits + (k + 0.5) / 4000 * scale * moves, 1) for k in range(4000)]).mean(0)
        gaps.append(float((mean_softmax(logits, scale * moves) - along).abs().max()))
    assert gaps[0] < 2e-3
    assert gaps[0] / gaps[1] > 12 and gaps[1] / gaps[2] > 12


def as_positions() -> tuple[Any, Positions]:
    """The same pairs of single tokens in both forms."""
    unembedding, features = problem()

    def every(split: Any) -> TokenFeatures:
        target = torch.tensor(
            [side[0] for both in zip(split.chosen_ids, split.rejected_ids, strict=True) for side in both]
        )
        count = len(split.pairs)
        return TokenFeatures(split.hidden.repeat_interleave(2, dim=0), target, torch.arange(2 * count), count)

    pairs = features.train.pairs, features.heldout.pairs
    return features, Positions(every(features.train), every(features.heldout), *pairs, unembedding, None, "same")


@pytest.mark.parametrize("optimizer", [SGD(0.8, momentum=0.5), AdamW(0.05, weight_decay=0.1)], ids=["sgd", "adamw"])
def test_single_tokens_have_the_same_contributions_by_either_path(optimizer: Optimizer) -> None:
    features, split = as_positions()
    recipe = head_recipe(beta=BETA, optimizer=optimizer, steps=6, batch_size=3, eval_steps=4)
    small, whole = forecast(features, recipe), forecast(split, recipe, dtype=torch.float64)
    concept = features.heldout.pairs[0].concept
    for wanted in ({"pair": 2}, {"pair": 1, "split": "train", "step": 4}, {"concept": concept}, {}):
        ours, theirs = whole.attribution(**wanted), small.attribution(**wanted)  # type: ignore[union-attr, arg-type]
        # Rows of no response have gradients of rounding size here, which Adam enlarges.
        assert error(ours.values, theirs.values) <= (RUN if optimizer.averaged is None else 1e-8)
        assert ours.start == pytest.approx(theirs.start, rel=1e-9, abs=1e-12)
        assert (ours.id, ours.split, ours.step, len(ours.pairs)) == (
            theirs.id, theirs.split, theirs.step, len(theirs.pairs),
        )  # fmt: skip
    edit = flip(10, [3])
    again = rerun(split, edit, recipe, dtype=torch.float64).heldout.margins
    assert error(again, rerun(features, edit, recipe).heldout.margins) <= 1e-8
    first = (
        sensitivity(split, recipe, lambda r: r.mean()[None]),
        sensitivity(features, recipe, lambda r: r.mean()[None]),
    )
    assert error(first[0].weights, first[1].weights) <= 1e-8
    assert error(first[0].twins, first[1].twins) <= 1e-8


@pytest.mark.parametrize("kept, held", [(1, 5), (3, 6), (20, 20)])
def test_a_run_is_gone_through_backwards_from_few_states(kept: int, held: int) -> None:
    alive = most = 0

    class Counted(Moment):
        def __init__(self, number: int) -> None:
            nonlocal alive, most
            super().__init__(torch.tensor(float(number)))
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    walk = backwards(Counted(3), (3, 23), lambda moment, step: Counted(step + 1), kept)
    seen = [(step, float(moment.state)) for step, moment in walk]
    assert seen == [(step, float(step)) for step in range(22, 2, -1)]
    assert most <= held + 3  # the one given out, and the two of a step that is being taken


def test_few_states_change_no_contribution(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = head_recipe(beta=BETA, optimizer=AdamW(0.05), steps=12, batch_size=3, eval_steps=5)
    run = forecast_positions(positions(), recipe, dtype=torch.float64)
    whole = run.attribution()
    monkeypatch.setattr(replay, "KEPT_BYTES", 1)
    assert torch.equal(run.attribution().values, whole.values)


@pytest.mark.parametrize("name", ["gd", "nesterov decay", "adam, scheduled and clipped", "flow"])
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    recipe, step = options(name, 4), 1e-4
    found = sensitivity(positions(), recipe, lambda margins: torch.stack([margins.mean(), margins[1].sigmoid()]))
    same = torch.ones(PAIRS, dtype=torch.float64), torch.zeros(PAIRS, dtype=torch.bool)

    def numbers(edit: Edit) -> Tensor:
        margins = reweighed(positions(), edit, recipe)
        return torch.stack([margins.mean(), margins[1].sigmoid()])

    assert error(found.values, numbers(Edit(*same))) <= 1e-12
    for row in (0, 4):
        one = torch.zeros(PAIRS, dtype=torch.float64)
        one[row] = step
        numeric = (numbers(Edit(same[0] + one, same[1])) - numbers(Edit(same[0] - one, same[1]))) / (2 * step)
        assert (numeric - found.weights[:, row]).abs().max() <= 1e-6 * found.weights.abs().max()


def test_derivatives_to_flipped_twins_are_those_of_twins_in_the_data() -> None:
    recipe = options("gd", 4)
    found = sensitivity(positions(), recipe)
    both = edited(positions(), duplicate(PAIRS, range(PAIRS)))
    turned = edited(both, flip(2 * PAIRS, range(1, 2 * PAIRS, 2)))

    def at(row: int, weight: float) -> Tensor:
        weights = torch.tensor([1.0, 0.0] * PAIRS).double()
        weights[2 * row + 1] = weight
        return reweighed(turned, Edit(weights, torch.zeros(2 * PAIRS, dtype=torch.bool)), recipe)

    step = 1e-4
    slope = (18 * at(2, step) - 9 * at(2, 2 * step) + 2 * at(2, 3 * step) - 11 * at(2, 0.0)) / (6 * step)
    assert (slope - found.twins[:, 2]).abs().max() <= 1e-6 * found.twins.abs().max()


def test_first_order_ranks_what_leaving_pairs_out_does() -> None:
    recipe = head_recipe(beta=BETA, optimizer=GradientDescent(0.3), steps=6, eval_steps=6)
    known = sensitivity(positions(), recipe)
    found = counterfactuals(positions(), [drop(PAIRS, [row]) for row in range(PAIRS)], recipe, first_order=known)
    predicted, actual = (
        torch.tensor([getattr(each.margin, name) for each in found]) for name in ("predicted", "rerun")
    )
    assert float(torch.corrcoef(torch.stack([predicted, actual]))[0, 1]) > 0.98


def test_edited_positions_are_the_edited_pairs() -> None:
    split = positions()
    fewer = edited(split, drop(PAIRS, [1, 3])).train
    kept = split.train.select(torch.tensor([0, 2, 4, 5, 6]))
    assert torch.equal(fewer.hidden, kept.hidden) and torch.equal(fewer.response, kept.response)
    turned = edited(split, flip(PAIRS, [2]))
    assert [pair.chosen for pair in turned.train_pairs][2] == split.train_pairs[2].rejected
    assert torch.equal(turned.train.response, turned.train.response.sort().values)
    for side in (0, 1):
        mine, theirs = turned.train.response == 4 + side, split.train.response == 5 - side
        assert torch.equal(turned.train.hidden[mine], split.train.hidden[theirs])
        assert torch.equal(turned.train.target[mine], split.train.target[theirs])
    twice = edited(split, duplicate(PAIRS, [6]))
    assert twice.train_pairs[7].id == f"{split.train_pairs[6].id}#2"
    assert torch.equal(twice.train.select(torch.tensor([7])).hidden, split.train.select(torch.tensor([6])).hidden)
    with pytest.raises(InputError, match="the edit is of 3 training pairs, and there are 7"):
        rerun(split, drop(3, [0]), options("gd"))


def test_what_is_not_there_is_said() -> None:
    run = forecast_positions(positions(), options("gd"))
    for wanted, message in [
        ({"pair": 99}, "pair must lie in 0 .. 3 of the heldout pairs"),
        ({"concept": "none such"}, "no heldout pair has the concept 'none such'; there are: "),
        ({"pair": 0, "concept": "x"}, "give a pair or a concept, not both"),
        ({"pair": 0, "step": 5}, "step 5 was not recorded; use one of 0, 4, 6"),
    ]:
        with pytest.raises(InputError, match=message):
            run.attribution(**wanted)  # type: ignore[arg-type]


def unresponsive(recipe: Recipe, edit: Edit) -> Tensor:
    """Changes of the held-out margins when the gradients of the run, pair by pair, are put together as `edit` has it,
    in plain loops: what `predict_edits` says it does."""
    split, start, rule = positions(), positions().unembedding, recipe.rule
    assert isinstance(rule, AdamW)
    here, twins = torch.where(edit.flipped, 0.0, edit.weights), torch.where(edit.flipped, edit.weights, 0.0)
    weights, memories = [start.clone(), start.clone()], [{}, {}]  # type: ignore[var-annotated]
    for k, batch in enumerate(recipe.batches(PAIRS)):
        shares = torch.zeros(PAIRS, dtype=torch.float64).index_add_(0, batch.rows, batch.weights)
        weight = weights[0].clone().requires_grad_(True)
        rewards = BETA * split.train.per_response(logps(split.train, weight) - logps(split.train, start))
        margins = rewards[:, 0] - rewards[:, 1]
        pulls = torch.stack([torch.autograd.grad(each, weight, retain_graph=True)[0] for each in margins])
        for run, (omega, phi) in enumerate([(torch.ones_like(here), torch.zeros_like(here)), (here, twins)]):
            slopes = omega * recipe.loss.slope(margins) - phi * recipe.loss.slope(-margins)
            total = (shares * (omega + phi)).sum()
            gradient = ((shares * slopes).detach()[:, None, None] * pulls).sum(0) / (total if total else 1.0)
            if recipe.max_grad_norm:
                gradient = gradient * min(1.0, float(recipe.max_grad_norm / (gradient.norm() + 1e-6)))
            rate = rule.learning_rate * recipe.factor(k)
            weights[run] = weights[run] + rule.update(gradient, weights[run], memories[run], k + 1, rate)
    slopes = torch.func.jacrev(lambda w: BETA * split.heldout.per_response(logps(split.heldout, w)))(weights[0])
    return ((slopes[:, 0] - slopes[:, 1]) * (weights[1] - weights[0])).sum((1, 2))


@pytest.mark.parametrize("name", ["adam, scheduled and clipped", "adamw"])
def test_edits_are_carried_through_the_steps_of_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = options(name)
    weighed = Edit(torch.linspace(0.2, 1.7, PAIRS).double(), torch.arange(PAIRS) % 3 == 0)
    same = Edit(torch.ones(PAIRS, dtype=torch.float64), torch.zeros(PAIRS, dtype=torch.bool))
    edits = [drop(PAIRS, [4]), flip(PAIRS, [1, 2]), duplicate(PAIRS, [6]), weighed, same]
    found = predict_edits(positions(), edits, recipe, dtype=torch.float64)
    run = forecast_positions(positions(), recipe, dtype=torch.float64)
    assert error(found.values, run.heldout.margins[-1]) <= 1e-10
    for edit, margins in zip(edits[:-1], found.edited, strict=False):
        assert error(margins - found.values, unresponsive(recipe, edit)) <= 1e-8
    assert torch.equal(found.edited[-1], found.values)
    monkeypatch.setattr(edited_run, "BLOCK_NUMBERS", 1)
    monkeypatch.setattr(edited_run, "ROWS", 1)  # of the unembedding at a time
    assert error(predict_edits(positions(), edits, recipe, dtype=torch.float64).edited, found.edited) <= 1e-10
    mean = predict_edits(positions(), edits, recipe, torch.mean)
    assert error(mean.edited[:, 0], found.edited.mean(1)) <= 1e-4


@pytest.mark.parametrize("batch_size", [30, 8])
def test_with_adam_dropping_a_pair_is_predicted_where_derivatives_see_nothing(batch_size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    pairs = make_pairs(40).pairs
    train, heldout = (draw_features(generator, 80, 12, count, 4) for count in (30, 10))
    unembedding = 0.3 * torch.randn(80, 12, generator=generator, dtype=torch.float64)
    split = Positions(train, heldout, PairSet(pairs[:30]), PairSet(pairs[30:]), unembedding, None, "drawn")
    recipe = head_recipe(beta=0.1, optimizer=AdamW(1e-3), steps=10, batch_size=batch_size, eval_steps=10)
    edits = [drop(30, [row]) for row in range(30)]
    found = predict_edits(split, edits, recipe, torch.mean)
    derivative = -sensitivity(split, recipe, torch.mean).weights[0]
    actual = torch.stack([reweighed(split, edit, recipe).mean() for edit in edits]) - found.values
    rows = torch.stack([actual, found.edited[:, 0] - found.values, derivative])
    correlations = torch.corrcoef(rows)[0]
    assert float(correlations[1]) > 0.99
    assert float(correlations[2]) < 0.6
