"""Which training tokens and pairs push a pair's rewards up or down, and by which factor? Numbers with their words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.features.positions import Positions, TokenFeatures
from margincast.frozen.tokens.decomposition import Contributions, Factors, contributions
from margincast.frozen.tokens.space import first_pull, head_space
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet
from margincast.results import Result

SIDES = ("chosen", "rejected")
SHOWN = 8  # training tokens and pairs of each direction
Words = Callable[[int], str]


@dataclass(frozen=True)
class Rates:
    """d/dt of the rewards of both responses, or the rewards themselves."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected


@dataclass(frozen=True)
class TokenRate:
    """A token of the pair: the rate of its reward by factor, `total` their sum, and its reward before training."""

    text: str
    start: float
    cooccurrence: float
    probability: float
    correlation: float
    total: float


@dataclass(frozen=True)
class TrainingToken:
    """A word of the vocabulary on one side: what all its `times` places there add to the rate of a response."""

    text: str
    side: str
    times: int
    cooccurrence: float
    probability: float
    correlation: float
    total: float


@dataclass(frozen=True)
class TokenPart:
    """What one token of a training pair adds to the rate of the margin."""

    text: str
    total: float


@dataclass(frozen=True)
class TrainingPair:
    """What one training pair adds to the rates of the margin and of both rewards; its tokens' part in it, by side."""

    id: str
    margin: float
    chosen: float
    rejected: float
    tokens: dict[str, tuple[TokenPart, ...]]


@dataclass(frozen=True, repr=False)
class Decomposition(Result):
    """What moves the rewards of one pair at the start of training the unembedding, per unit of t = rate x steps.

    pair, split: its id, and "train" or "heldout";  tokens: each of its tokens in order, by side
    start: the rewards before training, which those of the tokens add up to: 0, but of a model with a trained adapter,
    whose reference is the model without it, and of losses without a reference
    training_tokens: by side of the pair those that push its response up most and down most, most up first
    training_pairs: likewise, those that push its margin
    """

    presenter: ClassVar[str] = "decomposition"

    pair: str
    split: str
    start: Rates
    rates: Rates
    tokens: dict[str, tuple[TokenRate, ...]]
    training_tokens: dict[str, tuple[TrainingToken, ...]]
    training_pairs: tuple[TrainingPair, ...]

    def __repr__(self) -> str:
        return f"Decomposition({self.pair!r}, {self.split}: {self.rates})"


def decompose(positions: Positions, pair: str, recipe: Recipe, *, word: Words = str) -> Decomposition:
    """The rates of the rewards of the pair with the id `pair`, training or held-out, at the start of the run.

    word: the text of a token, as a tokenizer's `decode` gives it; by itself its number

    Raises `InputError` for an id that no pair has.
    """
    positions = positions.averaged(recipe.loss.averaged)
    there = positions.there()
    splits = (
        ("train", positions.train_pairs, positions.train),
        ("heldout", positions.heldout_pairs, positions.heldout),
    )
    found = [
        (split, features.select(torch.tensor([index])))
        for split, pairs, features in splits
        for index, each in enumerate(pairs)
        if each.id == pair
    ]
    if not found:
        raise InputError(f"no pair has the id {pair!r}; ids are like {positions.train_pairs[0].id}")
    (split, target), train = found[0], positions.train
    unembedding = there.unembedding.to(there.train.hidden)
    weights = first_pull(there.train, unembedding, recipe.loss, recipe.beta, there.bias)
    target_there = target.to(unembedding.device)
    parts = contributions(there.train, target_there, unembedding, weights, recipe.beta, there.bias).cpu()
    space = head_space(target_there, unembedding, recipe.beta, there.bias, unembedding.dtype, loss=recipe.loss)
    start = space.first_rewards().cpu()
    chosen, rejected = parts.by_position.total.sum(0).tolist()
    return Decomposition(
        pair=pair,
        split=split,
        start=Rates(*target.per_response(start)[0].tolist()),
        rates=Rates(chosen, rejected),
        tokens=_target_tokens(target, start, parts, word),
        training_tokens=_training_tokens(train, parts, word),
        training_pairs=_training_pairs(train, positions.train_pairs, parts, word),
    )


def _factor_values(factors: Factors) -> dict[str, Tensor]:
    """Every factor and the total by name."""
    return {name: getattr(factors, name) for name in ("cooccurrence", "probability", "correlation", "total")}


def _target_tokens(
    target: TokenFeatures, start: Tensor, parts: Contributions, word: Words
) -> dict[str, tuple[TokenRate, ...]]:
    values = {name: value.sum(0).tolist() for name, value in _factor_values(parts.by_pair).items()}
    values["start"] = start.tolist()
    rows: dict[str, list[TokenRate]] = {side: [] for side in SIDES}
    for place, (token, response) in enumerate(zip(target.target.tolist(), target.response.tolist(), strict=True)):
        rows[SIDES[response]].append(TokenRate(word(token), **{name: value[place] for name, value in values.items()}))
    return {side: tuple(each) for side, each in rows.items()}


def _training_tokens(train: TokenFeatures, parts: Contributions, word: Words) -> dict[str, tuple[TrainingToken, ...]]:
    kinds, which = torch.unique(2 * train.target + train.response % 2, return_inverse=True)
    times = torch.bincount(which, minlength=len(kinds))
    rows = {}
    for column, side in enumerate(SIDES):
        sums = {
            name: value.new_zeros(len(kinds)).index_add_(0, which, value[:, column])
            for name, value in _factor_values(parts.by_position).items()
        }
        rows[side] = tuple(
            TrainingToken(
                text=word(int(kinds[k]) // 2),
                side=SIDES[int(kinds[k]) % 2],
                times=int(times[k]),
                **{name: float(value[k]) for name, value in sums.items()},
            )
            for k in extremes(sums["total"], SHOWN)
        )
    return rows


def _training_pairs(
    train: TokenFeatures, pairs: PairSet, parts: Contributions, word: Words
) -> tuple[TrainingPair, ...]:
    margins = parts.by_position.total[:, 0] - parts.by_position.total[:, 1]
    by_pair = margins.new_zeros(train.pairs).index_add_(0, train.pair, margins)
    both = parts.by_position.total.new_zeros(train.pairs, 2).index_add_(0, train.pair, parts.by_position.total)

    def tokens(response: int) -> tuple[TokenPart, ...]:
        places = (train.response == response).nonzero()[:, 0]
        return tuple(TokenPart(word(int(train.target[p])), float(margins[p])) for p in places)

    return tuple(
        TrainingPair(
            id=pairs[k].id,
            margin=float(by_pair[k]),
            chosen=float(both[k, 0]),
            rejected=float(both[k, 1]),
            tokens={side: tokens(2 * k + column) for column, side in enumerate(SIDES)},
        )
        for k in extremes(by_pair, SHOWN)
    )


def extremes(values: Tensor, count: int) -> list[int]:
    """Indices of the `count` largest and the `count` smallest values, largest first; each once."""
    order = torch.argsort(values, descending=True, stable=True).tolist()
    return order if len(order) <= 2 * count else order[:count] + order[-count:]
