"""How large may a pack be on this device? Planned from costs and memory, halved where memory did not suffice.

The plan goes with the model, whatever is wrapped around it, for as long as it lives: extraction, training and
evaluation learn from each other what fits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from margincast.errors import StatedFailure
from margincast.passes.attention.choice import PREFERRED, Attention
from margincast.passes.budgets import BUDGETS, CPU_PACK_TOKENS, Budgets
from margincast.passes.hooks import unwrapped
from margincast.passes.packing import CPU_COSTS, Costs, distinct_tokens, plan_packs
from margincast.processes import everyone
from margincast.results import Json

T = TypeVar("T")


@dataclass
class PackPlan:
    """How batches of one model are packed.

    tokens: distinct tokens of a pack at most;  costs: of a pass;  source: where both are from
    attention: the kernels that packs may be attended to by;  halved: how often memory did not suffice
    """

    tokens: int
    costs: Costs
    source: str
    attention: Attention
    halved: int = 0

    def packs(self, units: Sequence[Sequence[Sequence[int]]], packed: bool, budgets: Budgets) -> list[list[int]]:
        """`plan_packs` of `units`; `budgets` may ask for smaller packs."""
        tokens = self.tokens if budgets.pack_tokens is None else min(self.tokens, budgets.pack_tokens)
        return plan_packs(units, tokens, packed, self.costs)

    def shrink(self, units: Sequence[Sequence[Sequence[int]]], device: torch.device) -> None:
        """A pack of `units` ran out of memory: halve the budget, for the rest of the run.

        Raises `StatedFailure` where the pack was one unit: nothing smaller is left.
        """
        size = distinct_tokens([sequence for unit in units for sequence in unit])
        if len(units) == 1:
            raise StatedFailure(
                f"the memory of {device} does not suffice for a pack of one pair, {size} distinct tokens; "
                "try gradient_checkpointing, a dtype of 16 bits, or a smaller max_length"
            )
        if size <= self.tokens:  # a larger one was planned before the budget was halved
            self.tokens = max(1, size // 2)
            self.halved += 1
        # What the failed pass held hangs on its exception's frames, in cycles.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def summary(self) -> Json:
        """What `summary.json` says of it."""
        return {
            "pack_tokens": self.tokens,
            "source": self.source,
            "costs": {"fixed": self.costs.fixed, "mask": self.costs.mask},
            "halved": self.halved,
            "attention": dict(self.attention.used),
            "refused": dict(self.attention.refused),
        }


_plans: WeakKeyDictionary[nn.Module, PackPlan] = WeakKeyDictionary()


def plan_of(model: Any) -> PackPlan:
    """The plan of `model`, made where it has none yet: on a CUDA device by three timed passes."""
    return _plans.get(_owner(model)) or set_plan(model)


def set_plan(model: Any, pack_tokens: int | None = None, cache: Path | None = None) -> PackPlan:
    """Plan for `model` anew.

    pack_tokens: the budget, in place of the device's own;  cache: folder where what a device was measured to do is kept
    """
    device = next(model.parameters()).device
    attention = Attention(PREFERRED.get(device.type, ()))
    plan = _plans[_owner(model)] = PackPlan(CPU_PACK_TOKENS, CPU_COSTS, "measured on two cores", attention)
    if device.type == "cuda":
        from margincast.passes.calibrate import calibrated  # which makes passes, by the plan above

        plan.tokens, plan.costs, plan.source = calibrated(model, device, cache)
    if pack_tokens is not None:
        plan.tokens, plan.source = pack_tokens, f"pack_tokens given, costs {plan.source}"
    return plan


def share_plan(model: Any, copy: Any) -> None:
    """`copy`, a deep copy of `model`, is packed as `model` is."""
    _plans[_owner(copy)] = plan_of(model)


def _owner(model: Any) -> nn.Module:
    embedding: nn.Module = unwrapped(model).get_input_embeddings()
    return embedding


def packs_of(
    model: Any, units: Sequence[Sequence[Sequence[int]]], packed: bool = True, budgets: Budgets = BUDGETS
) -> list[list[int]]:
    """`units`, each the sequences of a pair, in packs as `model` takes them on its device."""
    return plan_of(model).packs(units, packed, budgets)


def agreed_packs(
    model: Any, units: Sequence[Sequence[Sequence[int]]], packed: bool, budgets: Budgets = BUDGETS
) -> list[list[int]]:
    """`packs_of`, the same in every process of a run: those of the process with the smallest packs."""
    plans = everyone((plan_of(model).tokens, packs_of(model, units, packed, budgets)))
    return min(plans, key=lambda each: each[0])[1]


def where_it_fits(
    model: Any,
    members: Sequence[int],
    units: Callable[[int], Sequence[Sequence[int]]],
    packed: bool,
    compute: Callable[[list[int]], T],
) -> Iterator[tuple[list[int], T]]:
    """`compute(members)`, a pass without gradients; in parts where memory does not suffice, each with its members.

    units: the sequences of a member. Raises `StatedFailure` where one member alone does not fit.
    """
    plan, todo = plan_of(model), [list(members)]
    while todo:
        part = todo.pop(0)
        try:
            result = compute(part)
        except torch.OutOfMemoryError:
            failed = True
        else:
            failed = False
        if failed:
            # Out of the handler, whose exception holds on to all that the pass had made.
            sequences = [units(member) for member in part]
            plan.shrink(sequences, next(model.parameters()).device)
            todo[:0] = [[part[index] for index in each] for each in plan.packs(sequences, packed, BUDGETS)]
        else:
            yield part, result
