"""By which rule are pairs kept? One module a rule: the value of every pair, of which the largest are kept.

A rule of another package is an entry point of the group `margincast.rules`: a `Rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

from margincast.errors import InputError
from margincast.registry import Registry
from margincast.selection.evidence import Evidence

BOTH = "+"  # between two rules


@dataclass(frozen=True)
class Rule:
    """meaning: which pairs are kept, in a few words;  value: (N,) float64, the largest are kept
    rank: its place in tables;  looks: whether it looks at held-out pairs, which then may not judge it
    """

    meaning: str
    value: Callable[[Evidence], Tensor]
    rank: int = 50
    looks: bool = False


RULES: Registry[Rule] = Registry("rule", "margincast.selection.rules", "margincast.rules")
"""The rules by name. `RULES.register(name)` enters a `Rule`."""


def rules() -> dict[str, Rule]:
    """All rules by name, in the order of tables."""
    return dict(sorted(RULES.all().items(), key=lambda item: item[1].rank))


def rule_of(name: str) -> Rule:
    """The rule of this name, or of two, `a+b`: the mean of both ranks.

    A mean of ranks has no setting and is the same in either order, where dropping by one first would have to say how
    many. Raises `InputError` for a name that no rule has, and for more than two.
    """
    names = name.split(BOTH)
    if len(names) == 1:
        return RULES.get(name)
    if len(names) > 2 or names[0] == names[1]:
        raise InputError(f"rule {name!r}: join two different rules, as in out_of_fold+diverse")
    first, second = map(RULES.get, names)

    def value(evidence: Evidence) -> Tensor:
        return (ranks(first.value(evidence)) + ranks(second.value(evidence))) / 2

    meaning = f"mean of the ranks by {names[0]} and by {names[1]}"
    return Rule(meaning, value, rank=max(first.rank, second.rank) + 1, looks=first.looks or second.looks)


def ranks(values: Tensor) -> Tensor:
    """The share of values below each, (N,) float64; equal ones have their mean."""
    return torch.from_numpy((rankdata(values.numpy()) - 1) / max(1, len(values) - 1))


def in_turns(groups: Tensor, draw: Tensor) -> Tensor:
    """A value by which every group gives one pair after the other, in the order of `draw`, until it has none left.

    groups: (N,) numbers. All the same where there is one group, which leaves nothing to choose by.
    """
    if bool((groups == groups[0]).all()):
        return torch.zeros(len(groups), dtype=torch.float64)
    order = draw.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups)
    first = (sizes.cumsum(0) - sizes)[groups[order]]
    value = torch.empty(len(groups), dtype=torch.float64)
    value[order] = -(torch.arange(len(groups)) - first).double()
    return value
