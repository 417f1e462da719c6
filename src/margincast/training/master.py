"""How do weights of 16 bits take steps smaller than their rounding? An optimizer steps copies of them in float32.

bfloat16 has 8 bits: a step of a learning rate of 1e-5 is lost in most weights of .02, whose neighbours are 1e-4 away.
The copies add such steps up, and the weights are the copies, rounded, after each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from margincast.recipe.optimizer import Optimizer
from margincast.results import Json


class MasterWeights(torch.optim.Optimizer):
    """`kind` on copies in float32 of the weights of 16 bits; others it steps themselves.

    Of the gradients in float32 there is one at a time. Its state has the copies, so that a run goes on as it was left.
    """

    def __init__(self, params: Iterable[Json], kind: type[torch.optim.Optimizer], **settings: Any) -> None:
        super().__init__(params, settings)
        groups = []
        self.copies: list[tuple[nn.Parameter, nn.Parameter]] = []  # every weight, and what is stepped in its place
        for group in self.param_groups:
            mine = [(weight, _master(weight)) for weight in group["params"]]
            self.copies.extend(mine)
            groups.append({**group, "params": [master for _, master in mine]})
        self.inner = kind(groups, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})
        gradients = [weight.grad for weight, _ in self.copies]
        for weight, _ in self.copies:
            weight.grad = None  # so that a step is of one weight
        for number, (weight, master) in enumerate(self.copies):
            gradient = gradients[number]
            if gradient is None:
                continue
            gradients[number] = None
            master.grad = gradient.to(master.dtype)
            self.inner.step()
            master.grad = None
            if master is not weight:
                weight.copy_(master)

    def state_dict(self) -> Json:
        masters = [None if master is weight else master.detach() for weight, master in self.copies]
        return {"inner": self.inner.state_dict(), "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Json) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})
        for (_, master), kept in zip(self.copies, state_dict["masters"], strict=True):
            if kept is not None:
                master.copy_(kept)


def _master(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach().float()) if _rounds(weight) else weight


def _rounds(weight: Tensor) -> bool:
    return weight.dtype in (torch.bfloat16, torch.float16)


def has_masters(model: nn.Module) -> bool:
    """Whether something of `model` trains that has 16 bits, and so is stepped by copies."""
    return any(weight.requires_grad and _rounds(weight) for weight in model.parameters())


def optimizer_of(model: nn.Module, rule: Optimizer) -> tuple[type[torch.optim.Optimizer], Json]:
    """What makes the optimizer of `model`'s trainable weights, of groups of them. Raises `ValueError` for a rule that
    cannot train."""
    known = rule.torch_optimizer()
    if known is None:
        raise ValueError(f"{rule!r} cannot train a model")
    kind, settings = known
    return (MasterWeights, {"kind": kind, **settings}) if has_masters(model) else (kind, settings)
