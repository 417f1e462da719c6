"""What happens to a weight in one training step? The same for real runs and for rehearsals.

The loss is f(r) of the margin r = beta [(log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)], without the
reference where the loss leaves it out. Its gradient, averaged over the batches of a step, is cut to `max_grad_norm`
(0: never), and the optimizer takes it with the scheduled learning rate; norms and biases do not decay. A real run's
batches, clipping and schedule are carried out by transformers' Trainer in this same order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from margincast.passes.response_pass import PassResult, response_pass
from margincast.passes.tokenize import Encoded
from margincast.recipe.loss import Loss
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.recipe import Recipe

# What transformers' Trainer keeps from decaying, by its patterns.
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


@dataclass(frozen=True)
class Rewards:
    """Of the pairs of a batch: beta (log pi - log pi_ref) of both responses, (pairs,) each."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margins(self) -> Tensor:
        return self.chosen - self.rejected


def rewards(result: PassResult, reference: tuple[Tensor, Tensor], loss: Loss, beta: float, same: bool) -> Rewards:
    """reference: (pairs,) log-probabilities of chosen and rejected responses;  same: the policy still is the reference,
    as before the first update of a model without a trained adapter"""
    if loss.reference_free:
        reference = torch.zeros_like(result.chosen), torch.zeros_like(result.rejected)
    elif same:
        # From the same pass, so that margins are exactly 0.
        reference = result.chosen.detach(), result.rejected.detach()
    chosen, rejected = (side.to(result.chosen.device) for side in reference)
    return Rewards(beta * (result.chosen - chosen), beta * (result.rejected - rejected))


def decaying(model: nn.Module) -> list[str]:
    """Names of the weights that decay."""
    norms = {f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    return [
        name
        for name, _ in model.named_parameters()
        if not UNDECAYED.search(name.lower()) and not name.startswith(tuple(norms))
    ]


def torch_optimizer(model: nn.Module, rule: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of `model`'s trainable weights. Raises `ValueError` for a rule that cannot train."""
    known = rule.torch_optimizer()
    if known is None:
        raise ValueError(f"{rule!r} cannot train a model")
    kind, settings = known
    names = set(decaying(model))
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if (name in names) is decays], "weight_decay": decay}
        for decays, decay in ((True, rule.decay), (False, 0.0))
    ]
    optimizer: torch.optim.Optimizer = kind([group for group in groups if group["params"]], **settings)
    return optimizer


def take_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Sequence[Encoded]],
    references: Sequence[tuple[Tensor, Tensor]],
    recipe: Recipe,
    learning_rate: float,
    *,
    same: bool,
    packed: bool,
) -> None:
    """One step of `model` along the mean gradient of `batches`, with their `references`; same: as of `rewards`"""
    model.train()
    optimizer.zero_grad()
    for batch, reference in zip(batches, references, strict=True):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
            result = response_pass(model, batch, packed)
            found = rewards(result, reference, recipe.loss, recipe.beta, same)
            loss = recipe.loss.value(found.margins).mean() / len(batches)
        torch.autograd.backward(loss)
    if recipe.max_grad_norm > 0.0:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
