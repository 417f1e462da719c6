"""Which training tokens and pairs push a pair's rewards up or down, and by which factor? Numbers with their words."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from margincast.features.positions import TokenFeatures
from margincast.frozen.tokens.decomposition import Contributions, Factors
from margincast.records import Json, PairSet

SIDES = ("chosen", "rejected")
FACTORS = ("cooccurrence", "probability", "correlation", "total")
Words = Callable[[int], str]


def factor_values(factors: Factors, scale: float = 1.0) -> dict[str, Tensor]:
    """Every factor and the total by name, times `scale`."""
    return {name: getattr(factors, name) * scale for name in FACTORS}


def target_tokens(target: TokenFeatures, parts: Contributions, word: Words) -> dict[str, list[Json]]:
    """Each token of both responses of the target pair, in order, with the rate of its reward by factor."""
    values = {name: value.sum(0).tolist() for name, value in factor_values(parts.by_pair).items()}
    rows: dict[str, list[Json]] = {side: [] for side in SIDES}
    for place, (token, response) in enumerate(zip(target.target.tolist(), target.response.tolist(), strict=True)):
        rows[SIDES[response]].append({"text": word(token), **{name: value[place] for name, value in values.items()}})
    return rows


def training_tokens(train: TokenFeatures, parts: Contributions, word: Words, count: int) -> dict[str, list[Json]]:
    """For each response of the target, the `count` training tokens that push it up most and down most.

    A training token is a word of the vocabulary on one side: all its places in chosen (or rejected) responses together.
    """
    kinds, which = torch.unique(2 * train.target + train.response % 2, return_inverse=True)
    times = torch.bincount(which, minlength=len(kinds))
    rows = {}
    for column, side in enumerate(SIDES):
        sums = {
            name: value.new_zeros(len(kinds)).index_add_(0, which, value[:, column])
            for name, value in factor_values(parts.by_position).items()
        }
        rows[side] = [
            {
                "text": word(int(kinds[k]) // 2),
                "side": SIDES[int(kinds[k]) % 2],
                "times": int(times[k]),
                **{name: float(value[k]) for name, value in sums.items()},
            }
            for k in extremes(sums["total"], count)
        ]
    return rows


def training_pairs(train: TokenFeatures, pairs: PairSet, parts: Contributions, word: Words, count: int) -> list[Json]:
    """The `count` training pairs that push the target's margin up most and down most, with their tokens' part in it."""
    margins = parts.by_position.total[:, 0] - parts.by_position.total[:, 1]
    by_pair = margins.new_zeros(train.pairs).index_add_(0, train.pair, margins)
    both = parts.by_position.total.new_zeros(train.pairs, 2).index_add_(0, train.pair, parts.by_position.total)
    rows = []
    for k in extremes(by_pair, count):
        tokens = {
            side: [
                {"text": word(int(train.target[p])), "total": float(margins[p])}
                for p in (train.response == 2 * k + column).nonzero()[:, 0]
            ]
            for column, side in enumerate(SIDES)
        }
        reward = {side: float(both[k, column]) for column, side in enumerate(SIDES)}
        rows.append({"id": pairs[k].id, "margin": float(by_pair[k]), **reward, "tokens": tokens})
    return rows


def extremes(values: Tensor, count: int) -> list[int]:
    """Indices of the `count` largest and the `count` smallest values, largest first; each once."""
    order = torch.argsort(values, descending=True, stable=True).tolist()
    return order if len(order) <= 2 * count else order[:count] + order[-count:]
