"""What does the unembedding say of hidden states, without the logits of all of them in memory?

Logits are softcap(scale (W h + b)). Log-probabilities of tokens are made of them a block of rows at a time, in float32
at least, and so are their gradients in h, W and b: of a block p, the softmax, is made, minus what the tokens of a row
are pulled by in sum, plus each token's own at its place. Blocks are made again for it, or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from margincast.passes.attention.choice import activation_dtype
from margincast.passes.budgets import Budgets
from margincast.passes.hooks import unwrapped

# Of the logits of a block and their log-softmax, (rows, vocabulary), with the rows that predict its tokens and these
# tokens: more values of each token, without gradients.
Also = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Blocks:
    """How a head is gone over: `height` rows at a time, whose logits are made `again` in the backward pass or kept."""

    height: int
    again: bool

    def over(self, rows: int, position: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each block, and which tokens `position` has in it."""
        for start in range(0, rows, self.height):
            yield (
                slice(start, start + self.height),
                ((position >= start) & (position < start + self.height)).nonzero()[:, 0],
            )


@dataclass(frozen=True)
class Transform:
    """What is done to W h + b, and in which numbers it is computed."""

    scale: float
    softcap: float | None
    dtype: torch.dtype

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        given = None if bias is None else bias.to(self.dtype)
        return self.applied(nn.functional.linear(hidden.to(self.dtype), weight.to(self.dtype), given))

    def applied(self, product: Tensor) -> Tensor:
        logits = product if self.scale == 1.0 else product * self.scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def pull(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient in W h + b, of that in `logits`, which is overwritten."""
        if self.softcap:
            gradient.mul_(1.0 - (logits / self.softcap).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities of tokens by a head that is a product. The input hidden states, W and b are all that is saved,
    and the logits where they are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor, target: Tensor,
        transform: Transform, blocks: Blocks, also: Also | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        kept, parts, order = [], [], []
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, mine in blocks.over(len(hidden), position):
                logits = transform.logits(hidden[rows], weight, bias)
                if not blocks.again and any(ctx.needs_input_grad):
                    kept.append(logits)
                place = (position[mine] - rows.start).to(logits.device), target[mine].to(logits.device)
                parts.append(_values(logits, *place, also))
                order.append(mine)
        back = torch.argsort(torch.cat(order)).to(hidden.device)
        values = tuple(torch.cat(each)[back] for each in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, position, target, *kept)
        ctx.transform, ctx.blocks = transform, blocks
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pulled: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, position, target, *kept = ctx.saved_tensors
        transform, blocks = ctx.transform, ctx.blocks
        wide = torch.promote_types(weight.dtype, torch.float32)  # what sums over blocks are in
        needs = ctx.needs_input_grad
        of_hidden = torch.empty_like(hidden) if needs[0] else None
        of_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        of_bias = torch.zeros_like(bias, dtype=wide) if needs[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(transform.dtype)
            for number, (rows, mine) in enumerate(blocks.over(len(hidden), position)):
                logits = kept[number] if kept else transform.logits(hidden[rows], weight, bias)
                place = (position[mine] - rows.start).to(logits.device), target[mine].to(logits.device)
                full = _pull(transform, logits, place, pulled[mine.to(pulled.device)])
                gradient = full.to(transform.dtype)
                if of_hidden is not None:
                    of_hidden[rows] = (gradient @ used).to(hidden.dtype)
                if of_weight is not None:
                    _add_product(of_weight, gradient, hidden[rows].to(transform.dtype))
                if of_bias is not None:
                    of_bias += full.sum(dim=0)
        sums = [None if each is None else each.to(weight.dtype) for each in (of_weight, of_bias)]
        return of_hidden, *sums, None, None, None, None, None


def _pull(transform: Transform, logits: Tensor, place: tuple[Tensor, Tensor], pulled: Tensor) -> Tensor:
    """The gradient in W h + b of a block whose tokens, at `place`, are pulled by `pulled`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    pulled = pulled.to(logits.dtype)
    of_rows = pulled.new_zeros(len(logits)).index_add_(0, place[0], pulled)
    gradient = torch.softmax(logits, dim=-1).mul_(-of_rows[:, None])
    gradient.index_put_(place, pulled, accumulate=True)
    return transform.pull(gradient, logits)


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add gradient^T hidden to `total`, which may be of a wider dtype."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, hidden)
    else:
        total += gradient.T @ hidden


def _values(logits: Tensor, position: Tensor, target: Tensor, also: Also | None) -> tuple[Tensor, ...]:
    """Log-probabilities of `target` at rows `position` of a block, float32 at least, and what there is `also`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps = torch.log_softmax(logits, dim=-1)
    found = logps[position, target]
    if also is None:
        return (found,)
    with torch.no_grad():
        return found, *also(logits, logps, position, target)


def token_logps(
    model: Any,
    hidden: Tensor,
    position: Tensor,
    target: Tensor,
    budgets: Budgets,
    recompute: bool = False,
    also: Also | None = None,
) -> tuple[Tensor, ...]:
    """Log-probabilities of tokens `target`, (tokens,), predicted by rows `position` of `hidden`; float32 at least.

    hidden: (distinct predicting positions, hidden), as the unembedding receives them
    recompute: make the logits again in the backward pass rather than keep them, in the dtype that they are computed in
    also: more values of each token, given after the log-probabilities
    """
    head = unwrapped(model).get_output_embeddings()
    blocks = Blocks(max(1, budgets.logit_block // vocabulary(model)), recompute)
    if _is_product(head):
        transform = Transform(*logit_transform(model), _computed_in(head.weight))
        applied: tuple[Tensor, ...] = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, position, target, transform, blocks, also
        )
        return applied
    # An adapter around the head, or one of its own making: torch finds the gradients of a block.
    parts, order = [], []
    for rows, mine in blocks.over(len(hidden), position):
        block = (model, hidden[rows], position[mine] - rows.start, target[mine], also)
        again = recompute and torch.is_grad_enabled()
        parts.append(checkpoint(_of_model, *block, use_reentrant=False) if again else _of_model(*block))
        order.append(mine)
    back = torch.argsort(torch.cat(order)).to(parts[0][0].device)
    return tuple(torch.cat(each)[back] for each in zip(*parts, strict=True))


def _of_model(model: Any, hidden: Tensor, position: Tensor, target: Tensor, also: Also | None) -> tuple[Tensor, ...]:
    logits = logits_of(model, hidden)
    return _values(logits, position.to(logits.device), target.to(logits.device), also)


def _is_product(head: Any) -> bool:
    """Whether a call of `head` is W h + b and nothing else: no adapter, no hook, no forward of somebody's own."""
    hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    return type(head) is nn.Linear and not hooked


def _computed_in(weight: Tensor) -> torch.dtype:
    """The dtype of a product with `weight`: that of autocast, which leaves float64 alone."""
    return weight.dtype if weight.dtype == torch.float64 else activation_dtype(weight.device, weight.dtype)


def vocabulary(model: Any) -> int:
    return int(unwrapped(model).get_output_embeddings().weight.shape[0])


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """The model's own logits for `hidden`, (rows, hidden) -> (rows, vocabulary), scale and softcap included.

    Computed in the dtype of the unembedding, which head-only training keeps in float64.
    """
    head = unwrapped(model).get_output_embeddings()
    return Transform(*logit_transform(model), head.weight.dtype).applied(head(hidden.to(head.weight.dtype)))


def logit_transform(model: Any) -> tuple[float, float | None]:
    """(scale, softcap) that the model applies to W g. `check_logits` tests them against the model's own output."""
    config = unwrapped(model).config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return scale, float(softcap) if softcap else None
