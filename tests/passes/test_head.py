"""Log-probabilities by blocks of a head are those of its whole log-softmax, and so are their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from margincast.passes.budgets import Budgets
from margincast.passes.head import logits_of, token_logps
from tests.tiny import VOCABULARY, tiny_model
from tests.tolerances import TOLERANCE, error

# Rows that predict several tokens, one, or none; tokens in no order of their rows; a token twice.
POSITION = torch.tensor([4, 0, 2, 2, 6, 4, 0, 4])
TARGET = torch.tensor([7, 3, 11, 12, 0, 7, 399, 21])
SMALL = Budgets(logit_block=3 * VOCABULARY)
ALIKE = pytest.mark.parametrize("again", [True, False], ids=["made again", "kept"])


def model_of(architecture: str, dtype: torch.dtype) -> Any:
    """With a bias and a scale; Gemma's logits are soft-capped, Llama's head is tied."""
    model = tiny_model(architecture, dtype=dtype)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.linspace(-1.0, 1.0, head.out_features, dtype=dtype))
    model.config.logit_scale = 0.7
    return model


def states(dtype: torch.dtype) -> Tensor:
    drawn = torch.randn(7, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_()


def plain(model: Any, hidden: Tensor) -> Tensor:
    logits = logits_of(model, hidden)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)[POSITION, TARGET]


@ALIKE
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma2"])
def test_gradients_are_those_of_small_differences(architecture: str, again: bool) -> None:
    model, hidden = model_of(architecture, torch.float64), states(torch.float64)
    head = model.get_output_embeddings()

    def logps(*given: Tensor) -> Tensor:
        return token_logps(model, given[0], POSITION, TARGET, SMALL, again)[0]

    with torch.no_grad():
        assert error(logps(hidden), plain(model, hidden)) < TOLERANCE[torch.float64].formula
    assert torch.autograd.gradcheck(logps, (hidden, head.weight, head.bias), fast_mode=True)
    pull = torch.linspace(-1.0, 2.0, len(TARGET), dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad(found, (hidden, head.weight, head.bias), pull)
        for found in (logps(hidden), plain(model, hidden))
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert error(mine, other) < TOLERANCE[torch.float64].formula


@ALIKE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_16_bits_round_as_the_models_own_logits(dtype: torch.dtype, again: bool) -> None:
    """Log-probabilities to the last bits of float32; gradients to the rounding of their own dtype."""
    model, hidden = model_of("gemma2", dtype), states(dtype)
    weight = model.get_output_embeddings().weight
    found = []
    for compute in (
        lambda: token_logps(model, hidden, POSITION, TARGET, SMALL, again)[0],
        lambda: plain(model, hidden),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            logps = compute()
        assert logps.dtype == torch.float32
        found.append((logps, *torch.autograd.grad(logps.square().sum(), (hidden, weight))))
    assert error(found[0][0], found[1][0]) < TOLERANCE[torch.float32].formula
    for mine, other in zip(found[0][1:], found[1][1:], strict=True):
        assert mine.dtype == dtype
        assert error(mine, other) < 2 * torch.finfo(torch.bfloat16).eps


def test_the_gradient_of_a_head_of_16_bits_is_summed_in_float32() -> None:
    """Over blocks of one row each, against the same products in float64: one rounding at the end, not one a block."""
    model, rows = tiny_model("gpt_neox", dtype=torch.bfloat16), 200
    head = model.get_output_embeddings()
    hidden = torch.randn(rows, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    position, target = torch.arange(rows), torch.arange(rows) % 7
    by_one = Budgets(logit_block=VOCABULARY)
    (gradient,) = torch.autograd.grad(token_logps(model, hidden, position, target, by_one, True)[0].sum(), head.weight)
    p = (hidden @ head.weight.T).float().softmax(dim=-1).detach()
    pull = (torch.nn.functional.one_hot(target, VOCABULARY) - p).bfloat16().double()
    rounded = (pull[:, :, None] * hidden.double()[:, None]).bfloat16()  # each block's product
    assert error(gradient, rounded.double().sum(dim=0)) < torch.finfo(torch.bfloat16).eps
    added = torch.zeros_like(rounded[0])
    for block in rounded:
        added += block
    assert error(added, rounded.double().sum(dim=0)) > 2 * torch.finfo(torch.bfloat16).eps  # what is avoided


def test_a_frozen_head_has_no_gradient_and_one_that_is_all_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hidden = tiny_model("gpt_neox"), states(torch.float32)
    head = model.get_output_embeddings()
    head.requires_grad_(False)
    token_logps(model, hidden, POSITION, TARGET, SMALL, True)[0].sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None and bool(hidden.grad.abs().sum() > 0)
    head.requires_grad_(True)
    token_logps(model, hidden.detach(), POSITION, TARGET, SMALL, True)[0].sum().backward()
    assert head.weight.grad is not None


@ALIKE
def test_an_adapter_around_the_head_is_in_the_numbers(again: bool) -> None:
    """The head is then more than W h + b, and its own call says what."""
    model = tiny_model("gpt_neox")
    name = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    model = get_peft_model(model, LoraConfig(r=2, target_modules=[name], init_lora_weights=False)).get_base_model()
    hidden = states(torch.float32)
    adapters = [weight for name, weight in model.named_parameters() if "lora_" in name]
    found = [
        (logps.detach(), *torch.autograd.grad(logps.exp().sum(), (hidden, *adapters)))
        for logps in (token_logps(model, hidden, POSITION, TARGET, SMALL, again)[0], plain(model, hidden))
    ]
    for mine, other in zip(*found, strict=True):
        assert error(mine, other) < TOLERANCE[torch.float32].forward
    assert len(adapters) == 2
