"""Responses of many tokens of a model with a trained adapter, whose reference is the model without it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from margincast.features.extract import extract_features
from margincast.features.positions import Positions, extract_positions
from margincast.forecasting import forecast
from margincast.frozen.attribution.edits import Edit, drop
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.tokens import decompose, displacements, linearised_margins, sequence_kernel
from margincast.frozen.tokens.edited_run import edited_margins
from margincast.frozen.tokens.forecast import forecast_positions, spaces_of
from margincast.passes.tokenize import Encoded, encode
from margincast.recipe.recipe import Recipe
from margincast.records import Pair, PairSet
from tests.models.test_adapters import HELDOUT, TRAIN, adapted
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tolerances import TOLERANCE, error

BETA = 0.5
DOUBLE = TOLERANCE[torch.float64].run
SETTINGS: dict[str, Any] = {
    "train": "head", "beta": BETA, "max_steps": 4, "eval_steps": 2, "per_device_train_batch_size": 3,
    "learning_rate": 5e-2, "lr_scheduler_type": "linear", "max_grad_norm": 0.5,
}  # fmt: skip
RULES = {
    "sgd": (Recipe(optimizer="sgd", **SETTINGS), lambda p: torch.optim.SGD(p, 1.0)),
    "adamw": (Recipe(weight_decay=0.1, **SETTINGS), lambda p: torch.optim.AdamW(p, weight_decay=0.1)),
}


def talk() -> tuple[PairSet, PairSet]:
    """Seven training pairs and three held-out ones, with responses of many and unequal lengths."""
    words = ("good", "weather", "answer", "friend", "number")
    pairs = tuple(
        Pair(
            f"talk:{k}", "talk", f"{words[k % 5]} {k}:", f" {words[(k + 1) % 5]} words" + " Yes" * (k % 3),
            f" {words[(k + 2) % 5]}" + " No" * (k % 2), "talk.jsonl", k + 1,
        )
        for k in range(10)
    )  # fmt: skip
    return PairSet(pairs[:7]), PairSet(pairs[7:])


@cache
def policy() -> Any:
    return adapted(trained=True).double().eval()


@cache
def reference() -> nn.Module:
    return tiny_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def positions(tmp_path_factory: pytest.TempPathFactory) -> Positions:
    return extract_positions((policy(), tiny_tokenizer()), *talk(), cache_dir=tmp_path_factory.mktemp("cache"))


def log_ratios(row: Encoded, head: Tensor) -> list[Tensor]:
    """log(pi / pi_ref) of the tokens of both responses: of the policy with `head`, against the explicit reference.

    One forward pass a response and a model, without padding or packing.
    """
    found = []
    for side in (row.chosen, row.rejected):
        ids = torch.tensor([[*row.prompt, *side]])
        here = slice(len(row.prompt) - 1, len(row.prompt) - 1 + len(side))
        with torch.no_grad():
            hidden = policy()(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, here]
            before = torch.log_softmax(reference()(input_ids=ids).logits[0, here], dim=-1)
        target = torch.tensor(side)[:, None]
        after = torch.log_softmax(hidden @ head.T, dim=-1)
        found.append((after.gather(1, target) - before.gather(1, target))[:, 0])
    return found


def margins(pairs: PairSet, head: Tensor, averaged: bool) -> Tensor:
    rows = encode(pairs, tiny_tokenizer()).rows
    both = [[each.mean() if averaged else each.sum() for each in log_ratios(row, head)] for row in rows]
    return BETA * torch.stack([chosen - rejected for chosen, rejected in both])


def value(name: str, r: Tensor) -> Tensor:
    """Written out from the papers."""
    return (r / BETA - 1 / (2 * BETA)) ** 2 if name == "ipo" else -torch.nn.functional.logsigmoid(r)


def head_of_reference() -> Tensor:
    return reference().lm_head.weight.detach().clone()


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def head_trained(recipe: Recipe, make: Any) -> dict[str, Tensor]:
    """(steps + 1, pairs) margins of both splits while PyTorch trains the policy's head."""
    name, averaged = recipe.loss.name, recipe.loss.averaged
    head = head_of_reference().requires_grad_()
    optimizer, (train, heldout) = make([head]), talk()
    met: dict[str, list[Tensor]] = {"train": [], "heldout": []}

    def record() -> None:
        with torch.no_grad():
            met["train"].append(margins(train, head, averaged))
            met["heldout"].append(margins(heldout, head, averaged))

    record()
    for step, batch in enumerate(recipe.batches(len(train))):
        optimizer.zero_grad()
        found = margins(train, head, averaged)[batch.rows]
        (batch.weights * value(name, found)).sum().backward()
        nn.utils.clip_grad_norm_([head], recipe.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.factor(step)
        optimizer.step()
        record()
    return {split: torch.stack(rows) for split, rows in met.items()}


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@pytest.mark.parametrize("name", RULES)
def test_a_forecast_is_a_head_trained_against_the_model_without_the_adapter(
    name: str, loss: str, positions: Positions
) -> None:
    recipe, make = replace(RULES[name][0], loss_type=loss), RULES[name][1]
    run = forecast_positions(positions, recipe, dtype=torch.float64)
    trained, at = head_trained(recipe, make), list(recipe.recorded)
    assert float(trained["heldout"][0].abs().max()) > 0.1
    assert error(run.train.margins, trained["train"][at]) <= DOUBLE
    assert error(run.heldout.margins, trained["heldout"][at]) <= DOUBLE
    assert error(run.reward_profile().heldout.margins, run.heldout.margins[-1]) <= DOUBLE
    # Where a margin began and the parts of training pairs are the margin.
    for k, found in enumerate(run.attributions([run.target(k) for k in range(3)])):
        assert abs(found.residual) <= DOUBLE
        assert found.start + float(found.values.sum()) == pytest.approx(float(trained["heldout"][-1, k]), abs=1e-8)
        if not recipe.rule.decay:
            assert found.start == pytest.approx(float(trained["heldout"][0, k]), abs=1e-10)


def test_float32_takes_the_model_s_own_numbers(positions: Positions) -> None:
    recipe = RULES["adamw"][0]
    single = replace(
        positions,
        train=replace(positions.train, hidden=positions.train.hidden.float()),
        heldout=replace(positions.heldout, hidden=positions.heldout.hidden.float()),
        unembedding=positions.unembedding.float(),
    )
    exact = forecast_positions(positions, recipe, dtype=torch.float64)
    assert error(forecast(single, recipe).heldout.margins, exact.heldout.margins) <= TOLERANCE[torch.float32].run


def test_what_moves_a_token_is_what_the_loss_does_there(positions: Positions) -> None:
    """Rates at margins that are not 0 by autodiff, and rewards before training that add up to those of responses."""
    recipe, (train, heldout) = RULES["sgd"][0], talk()
    head = head_of_reference().requires_grad_()
    (gradient,) = torch.autograd.grad(value("sigmoid", margins(train, head, averaged=False)).mean(), head)
    row, found = encode(heldout, tiny_tokenizer()).rows[1], decompose(positions, "talk:8", recipe)
    ratios = log_ratios(row, head.detach())
    for side, column, start, rate in (
        ("chosen", 0, found.start.chosen, found.rates.chosen),
        ("rejected", 1, found.start.rejected, found.rates.rejected),
    ):
        _, rates = torch.func.jvp(lambda w, c=column: BETA * log_ratios(row, w)[c], (head.detach(),), (-gradient,))
        tokens = found.tokens[side]
        assert error(doubles([each.total for each in tokens]), rates) <= 1e-10
        assert error(doubles([each.start for each in tokens]), BETA * ratios[column]) <= 1e-10
        assert sum(each.start for each in tokens) == pytest.approx(start, abs=1e-12)
        assert rate == pytest.approx(float(rates.sum()), abs=1e-10)
    assert found.start.margin == pytest.approx(float(margins(heldout, head.detach(), averaged=False)[1]), abs=1e-10)
    # Changes of log pi do not have the start in them.
    run = forecast_positions(positions, recipe, dtype=torch.float32)
    chosen = run.heldout.chosen
    assert chosen is not None
    changes = displacements(positions, recipe).heldout.forecast[:, 0]
    assert error(changes, (chosen[-1] - chosen[0]) / BETA) <= TOLERANCE[torch.float32].run


def test_edits_and_derivatives_begin_there(positions: Positions) -> None:
    recipe = RULES["sgd"][0].for_pairs(7)
    run = forecast_positions(positions, recipe, dtype=torch.float64)
    found = sensitivity(positions, recipe, lambda margins: margins.mean()[None])
    assert float(found.values) == pytest.approx(float(run.heldout.margins[-1].mean()), abs=1e-8)
    runs = []
    for step in (1e-4, -1e-4):
        weights = torch.ones(7, dtype=torch.float64)
        weights[1] += step
        runs.append(reweighed(positions, Edit(weights, torch.zeros(7).bool()), recipe).mean())
    assert float(found.weights[0, 1]) == pytest.approx(float(runs[0] - runs[1]) / 2e-4, rel=1e-5)
    after, _ = edited_margins(*spaces_of(positions, recipe, torch.float64), recipe, [drop(7, [2])])
    assert error(after, run.heldout.margins[-1]) <= DOUBLE


def test_the_kernel_of_small_steps_begins_there(positions: Positions) -> None:
    recipe = replace(RULES["sgd"][0], learning_rate=1e-6).for_pairs(7)
    starts = []
    for rows in (positions.train, positions.heldout):
        ratios = rows.start_log_ratios
        assert ratios is not None
        sums = rows.per_response(ratios)
        starts.append(BETA * (sums[:, 0] - sums[:, 1]))
    kernels = [
        sequence_kernel(rows, positions.train, positions.unembedding) for rows in (positions.train, positions.heldout)
    ]
    constant = replace(recipe, lr_scheduler_type="constant")
    run = forecast_positions(positions, replace(constant, eval_steps=1, max_grad_norm=0.0), dtype=torch.float64)
    train, heldout = linearised_margins(
        kernels[0], kernels[1], constant.rule, constant.batches(7), constant.loss, BETA, (starts[0], starts[1])
    )
    assert error(train, run.train.margins[1:]) <= DOUBLE
    assert error(heldout - starts[1], run.heldout.margins[1:] - starts[1]) <= 1e-4


def test_responses_of_one_token_are_those_of_the_other_path(tmp_path: Path) -> None:
    given = (policy(), tiny_tokenizer())
    one = extract_features(given, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)
    many = extract_positions(given, TRAIN, HELDOUT, cache_dir=tmp_path)
    for name, (recipe, _) in RULES.items():
        exact, run = forecast(one, recipe), forecast(many, recipe, dtype=torch.float64)
        assert error(run.heldout.margins, exact.heldout.margins) <= DOUBLE, name
        assert error(run.train.margins, exact.train.margins) <= DOUBLE, name
        here, there = run.attribution(0), exact.attribution(0)
        assert here.start == pytest.approx(there.start, abs=1e-8)
        assert error(here.values, there.values) <= 1e-4, name  # an integral there, a sum of steps here
    same = many.heldout.as_single(HELDOUT)
    assert error(torch.stack(same.policy_logps), torch.stack(one.heldout.policy_logps)) <= DOUBLE


def test_a_cache_tells_the_adapter_from_the_model_without_and_the_merged_one(tmp_path: Path) -> None:
    models = {"adapted": policy(), "plain": reference(), "merged": adapted(trained=True).double().merge_and_unload()}
    found = {
        name: extract_positions((model, tiny_tokenizer()), *talk(), cache_dir=tmp_path)
        for name, model in models.items()
    }
    again = extract_positions((policy(), tiny_tokenizer()), *talk(), cache_dir=tmp_path)
    assert [each.train.start is not None for each in found.values()] == [True, False, False]
    for name, theirs in (("plain", "reference"), ("merged", "start")):
        logps, mine = found[name].train.reference, getattr(found["adapted"].train, theirs)
        assert logps is not None and error(logps, mine) <= DOUBLE
    assert again.train.start is not None and found["adapted"].train.start is not None
    assert torch.equal(again.train.start, found["adapted"].train.start)
    assert len(list((tmp_path / "features").iterdir())) == 3
