"""How is a run differentiated without copies of its features? What moves margins and pull are each other's transpose.

    dW -> r_i - r_i(0) = beta delta_i^T dW g_i        and        c -> sum_i c_i delta_i g_i^T

are linear, so that reverse mode needs nothing but the features that are there anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.optimizer import Rule, Slots


def margins(state: Tensor, space: TokenSpace, rows: Tensor | None = None) -> Tensor:
    """`space.margins(state)` of the pairs at `rows`, or of all, differentiable in the state."""
    moved = _moved(state, space, rows)
    if space.start is None:
        return moved
    return (space.start if rows is None else space.start[rows]).to(moved) + moved


def pull(coefficients: Tensor, space: TokenSpace, rows: Tensor | None = None) -> Tensor:
    """`space.pull(coefficients)` of the pairs at `rows`, or of all, differentiable in the coefficients."""
    out: Tensor = _Pull.apply(coefficients, space, rows)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class Smooth:
    """An optimizer whose steps can be differentiated where Adam has not met a gradient yet."""

    optimizer: Rule

    @property
    def learning_rate(self) -> float:
        return self.optimizer.learning_rate

    def update(self, gradient: Tensor, weights: Tensor, slots: Slots, step: int, learning_rate: float) -> Tensor:
        change = self.optimizer.update(gradient, weights, slots, step, learning_rate)
        for slot in slots.values():
            if slot.requires_grad:
                # sqrt has an infinite slope at v = 0, which g = 0 multiplies there: 0 in the limit, NaN in floats.
                slot.register_hook(torch.nan_to_num)  # type: ignore[no-untyped-call]
        return change


def _moved(state: Tensor, space: TokenSpace, rows: Tensor | None) -> Tensor:
    out: Tensor = _Moved.apply(state, space, rows)  # type: ignore[no-untyped-call]
    return out


class _Moved(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, space: TokenSpace, rows: Tensor | None) -> Tensor:
        return _seen(space, rows).moved(state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, TokenSpace, Tensor | None], output: Tensor) -> None:
        _, ctx.space, ctx.rows = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.space.beta * pull(grad, ctx.space, ctx.rows), None, None


class _Pull(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(coefficients: Tensor, space: TokenSpace, rows: Tensor | None) -> Tensor:
        return _seen(space, rows).pull(coefficients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, TokenSpace, Tensor | None], output: Tensor) -> None:
        _, ctx.space, ctx.rows = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _moved(grad, ctx.space, ctx.rows) / ctx.space.beta, None, None


def _seen(space: TokenSpace, rows: Tensor | None) -> TokenSpace:
    # Taken again on the way back: a run's batches would hold its features many times over.
    return space if rows is None else space.rows(rows)
