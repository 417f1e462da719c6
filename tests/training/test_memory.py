"""Memory that does not suffice is simulated. Are packs halved, and does training end with the same weights?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from margincast.errors import StatedFailure
from margincast.features import features_of
from margincast.passes import evaluate, response_pass
from margincast.passes.evaluate import Evaluator
from margincast.passes.packing import distinct_tokens
from margincast.passes.plan import plan_of, set_plan
from margincast.passes.tokenize import Encoded, encode
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet
from margincast.training import step
from margincast.training.step import take_step, torch_optimizer
from tests.problems import make_pairs
from tests.tiny import tiny_loaded
from tests.tolerances import TOLERANCE, error
from tests.training.test_trl_parity import some_pairs, train_ours

ENOUGH = 70  # tokens that fit


class Backward(torch.autograd.Function):
    """Nothing, until its backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, size: int) -> Tensor:
        ctx.size = size
        return states.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.size > ENOUGH:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return gradient, None


def scarce(monkeypatch: pytest.MonkeyPatch, when: str = "forward") -> list[int]:
    """Passes of more than `ENOUGH` tokens run out of memory. Returns the sizes of all passes, as they are made."""
    sizes: list[int] = []
    genuine = response_pass.hidden_states

    def hidden_states(model: Any, batch: Sequence[Encoded], packed: bool = True) -> Any:
        size = distinct_tokens([ids for pair in batch for ids in pair.inputs])
        if when == "forward" or torch.is_grad_enabled():  # a pass that could have run out
            sizes.append(size)
        if when == "forward" and size > ENOUGH:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        states, rows = genuine(model, batch, packed)
        return (Backward.apply(states, size) if when == "backward" else states), rows

    for module in (response_pass, evaluate):
        monkeypatch.setattr(module, "hidden_states", hidden_states)
    return sizes


def weights(model: Any) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_goes_on_in_halves_and_ends_with_the_same_weights(
    accumulation: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the second batch of a step that fails, half-way through its backward pass."""
    pairs, first, second = some_pairs(16), tiny_loaded(), tiny_loaded()
    logged = train_ours(first, pairs, tmp_path / "enough", gradient_accumulation_steps=accumulation)
    assert plan_of(first.model).halved == 0
    if when == "backward":  # of a batch alone, and no pass over many pairs without gradients
        monkeypatch.setattr("tests.training.test_memory.ENOUGH", 30)
    sizes = scarce(monkeypatch, when)
    again = train_ours(second, pairs, tmp_path / "scarce", gradient_accumulation_steps=accumulation)
    plan = plan_of(second.model)
    assert plan.halved >= 1
    assert plan.tokens <= ENOUGH
    assert sum(size > ENOUGH for size in sizes) <= 2 * plan.halved  # it is remembered
    assert error(weights(second.model), weights(first.model)) <= TOLERANCE[torch.float32].run
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
        for ours, theirs in zip(again, logged, strict=True):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)


def test_a_rehearsal_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    rows = encode(some_pairs(12), loaded.tokenizer, eos=True).rows
    batches = [rows[:6], rows[6:]]
    references = [(torch.linspace(-30.0, -20.0, 6), torch.linspace(-25.0, -28.0, 6))] * 2
    recipe = Recipe(beta=0.1, learning_rate=1e-3)
    models = [copy.deepcopy(loaded.model) for _ in range(2)]
    for model in models:
        take_step(
            model, torch_optimizer(model, recipe.rule), batches, references, recipe, 1e-3, same=False, packed=True
        )
        scarce(monkeypatch, "backward")
    assert plan_of(models[1]).halved >= 1
    assert error(weights(models[1]), weights(models[0])) <= TOLERANCE[torch.float32].run


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_features_and_evaluations_are_made_in_halves(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, pairs = tiny_loaded(), make_pairs(20)
    encoding = encode(pairs, loaded.tokenizer, eos=True)
    train, heldout = PairSet(pairs.pairs[:14]), PairSet(pairs.pairs[14:])

    def both(folder: str) -> tuple[Tensor, ...]:
        features = features_of(loaded, encoding, train, heldout, cache_dir=tmp_path / folder)
        with torch.no_grad():
            whole = response_pass.response_pass(loaded.model, encoding.rows, packed)
        evaluated = Evaluator(encoding.rows, packed, frozen_backbone=False)(loaded.model)
        return features.train.hidden, features.heldout.reference_chosen, whole.chosen, whole.hidden, *evaluated

    enough = both("enough")
    monkeypatch.setattr("tests.training.test_memory.ENOUGH", 40)
    scarce(monkeypatch)
    for ours, theirs in zip(both("scarce"), enough, strict=True):
        assert error(ours, theirs) <= TOLERANCE[torch.float32].forward
    assert plan_of(loaded.model).halved >= 1


def test_one_pair_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    rows = encode(some_pairs(4), loaded.tokenizer, eos=True).rows
    monkeypatch.setattr("tests.training.test_memory.ENOUGH", 3)
    scarce(monkeypatch)
    with torch.no_grad(), pytest.raises(StatedFailure, match="memory of cpu does not suffice for a pack of one pair"):
        response_pass.response_pass(loaded.model, rows)


def test_a_pack_is_carried_back_before_the_next_goes_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one pack's activations are in memory."""
    loaded = tiny_loaded()
    rows = encode(some_pairs(6), loaded.tokenizer, eos=True).rows
    set_plan(loaded.model, pack_tokens=40)
    order: list[str] = []
    genuine: Callable[..., Any] = step.response_pass

    def watched(*arguments: Any) -> Any:
        order.append("forward")
        result = genuine(*arguments)
        result.chosen.register_hook(lambda gradient: order.append("backward"))
        return result

    monkeypatch.setattr(step, "response_pass", watched)
    recipe = Recipe(beta=0.1, learning_rate=1e-3)
    reference = (torch.zeros(6), torch.zeros(6))
    optimizer = torch_optimizer(loaded.model, recipe.rule)
    take_step(loaded.model, optimizer, [rows], [reference], recipe, 1e-3, same=True, packed=True)
    assert len(order) > 2
    assert order == ["forward", "backward"] * (len(order) // 2)
