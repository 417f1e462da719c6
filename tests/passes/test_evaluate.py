"""The evaluation during training: repeatable to the bit, right, and without side effects."""

from __future__ import annotations

import pytest
import torch

from margincast.models import untie
from margincast.passes import evaluate
from margincast.passes.budgets import Budgets
from margincast.passes.evaluate import Evaluator
from margincast.passes.tokenize import encode
from tests.oracles import response_logp
from tests.problems import make_pairs
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tolerances import TOLERANCE, error

ROWS = encode(make_pairs(20), tiny_tokenizer(), eos=True).rows
FORWARD = TOLERANCE[torch.float32].forward


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "all weights"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_it_gives_the_models_log_probabilities_in_the_order_of_the_rows(packed: bool, frozen: bool) -> None:
    model = tiny_model("gpt2")
    chosen, rejected = Evaluator(ROWS, packed, frozen)(model)
    assert chosen.dtype == rejected.dtype == torch.float64
    with torch.no_grad():
        for sums, side in ((chosen, "chosen"), (rejected, "rejected")):
            own = torch.stack([response_logp(model, row.prompt, getattr(row, side)) for row in ROWS])
            assert error(sums, own) <= FORWARD


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "all weights"])
def test_an_unchanged_model_gives_the_same_numbers_to_the_bit(frozen: bool) -> None:
    model, evaluator = tiny_model("llama"), Evaluator(ROWS, True, frozen, Budgets(pack_tokens=60))
    first, second = evaluator(model), evaluator(model)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_with_a_frozen_backbone_a_new_head_is_seen_and_the_backbone_is_not_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    head = untie(model)
    evaluator = Evaluator(ROWS, True, frozen_backbone=True)
    before, _ = evaluator(model)
    with torch.no_grad():
        head.weight.add_(0.1 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)))
    fresh, _ = Evaluator(ROWS, True, frozen_backbone=True)(model)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("the backbone was run again")

    monkeypatch.setattr(evaluate, "hidden_states", never)
    after, _ = evaluator(model)
    assert torch.equal(after, fresh)
    assert float((after - before).abs().max()) > 0.01


def test_without_it_a_change_deep_in_the_model_is_seen() -> None:
    model, evaluator = tiny_model("llama"), Evaluator(ROWS, True, frozen_backbone=False)
    before, _ = evaluator(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    after, _ = evaluator(model)
    assert float((after - before).abs().max()) > 0.01


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_and_gradients_are_left_alone(training: bool) -> None:
    model = tiny_model("gpt2")
    model.train(training)
    chosen, _ = Evaluator(ROWS, True, frozen_backbone=False)(model)
    assert model.training is training
    assert not chosen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
