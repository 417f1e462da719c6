"""What happens to a weight in one training step? The same for real runs and for rehearsals.

The loss is f(r) of the margin r = beta [(log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)], without the
reference where the loss leaves it out, each log-ratio over the tokens of its response where the loss averages. Its
gradient, averaged over the batches of a step, is cut to `max_grad_norm` (0: never), and the optimizer takes it with the
scheduled learning rate, weights of 16 bits by copies in float32 (`training.master`); norms and biases do not decay. A
real run's batches, clipping and schedule are carried out by transformers' Trainer in this same order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from margincast.passes.budgets import BUDGETS
from margincast.passes.plan import plan_of
from margincast.passes.response_pass import PassResult, response_pass
from margincast.passes.tokenize import Encoded
from margincast.recipe.loss import Loss
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.recipe import Recipe
from margincast.training.master import optimizer_of

T = TypeVar("T")
# What transformers' Trainer keeps from decaying, by its patterns.
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


@dataclass(frozen=True)
class Rewards:
    """Of the pairs of a batch: beta (log pi - log pi_ref) of both responses, (pairs,) each, a mean over tokens where
    the loss averages."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margins(self) -> Tensor:
        return self.chosen - self.rejected


def rewards(
    result: PassResult,
    pairs: Sequence[Encoded],
    reference: tuple[Tensor, Tensor],
    loss: Loss,
    beta: float,
    same: bool,
) -> Rewards:
    """reference: (pairs,) log-probabilities of chosen and rejected responses;  same: the policy still is the reference,
    as before the first update of a model without a trained adapter"""
    if loss.reference_free:
        reference = torch.zeros_like(result.chosen), torch.zeros_like(result.rejected)
    elif same:
        # From the same pass, so that margins are exactly 0.
        reference = result.chosen.detach(), result.rejected.detach()
    chosen, rejected = (side.to(result.chosen.device) for side in reference)
    counted = [each.to(chosen) for each in counted_lengths(pairs, loss)]
    return Rewards(beta * (result.chosen - chosen) / counted[0], beta * (result.rejected - rejected) / counted[1])


def counted_lengths(pairs: Sequence[Encoded], loss: Loss) -> tuple[Tensor, Tensor]:
    """What `loss` divides log-ratios of chosen and rejected responses by, (pairs,) float64 each: their tokens, or 1."""
    lengths = torch.tensor([(len(pair.chosen), len(pair.rejected)) for pair in pairs], dtype=torch.float64)
    chosen, rejected = (lengths if loss.averaged else torch.ones_like(lengths)).unbind(dim=1)
    return chosen, rejected


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
    kind, settings = optimizer_of(model, rule)
    names = set(decaying(model))
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if (name in names) is decays], "weight_decay": decay}
        for decays, decay in ((True, rule.decay), (False, 0.0))
    ]
    optimizer: torch.optim.Optimizer = kind([group for group in groups if group["params"]], **settings)
    return optimizer


def pack_by_pack(
    model: Any,
    batches: Sequence[Sequence[Encoded]],
    packed: bool,
    one: Callable[[int, list[int], bool], T],
    restart: Callable[[], None],
    done: int = 0,
) -> list[T]:
    """`one(batch, members, last)` for every pack of `batches`, with the number of the batch and the pack's pairs in it.

    A pack's forward pass is followed by its backward pass, so that no more than one pack's activations are in memory.
    Where that does not suffice, the packs are made smaller (`PackPlan.shrink`) and, after `restart()`, which forgets
    the gradients that were added up, all batches are gone through again.

    done: batches whose gradients are there already. Raises `StatedFailure` where one pair alone does not fit.
    """
    plan = plan_of(model)
    while True:
        results: list[T] = []
        failed: list[Encoded] = []
        try:
            for number in range(done, len(batches)):
                packs = plan.packs([pair.inputs for pair in batches[number]], packed, BUDGETS)
                for count, members in enumerate(packs, start=1):
                    failed = [batches[number][index] for index in members]
                    results.append(one(number, members, count == len(packs)))
            return results
        except torch.OutOfMemoryError:
            pass  # out of the handler, whose exception holds on to all that the pass had made
        results.clear()
        restart()
        plan.shrink([pair.inputs for pair in failed], next(model.parameters()).device)
        done = 0


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

    def one(number: int, members: list[int], last: bool) -> None:
        batch = batches[number]
        reference = (references[number][0][members], references[number][1][members])
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
            pairs = [batch[index] for index in members]
            result = response_pass(model, pairs, packed)
            found = rewards(result, pairs, reference, recipe.loss, recipe.beta, same)
            loss = recipe.loss.value(found.margins).sum() / (len(batch) * len(batches))
        torch.autograd.backward(loss)

    model.train()
    optimizer.zero_grad()
    pack_by_pack(model, batches, packed, one, optimizer.zero_grad)
    if recipe.max_grad_norm > 0.0:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
