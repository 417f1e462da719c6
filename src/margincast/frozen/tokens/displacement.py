"""Whose chosen likelihood will fall? Rates of log-probabilities at the start, and the CHES score beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.features.positions import Positions, TokenFeatures
from margincast.frozen.tokens.decomposition import along, distributions, velocity
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.frozen.tokens.pushes import SHOWN, SIDES, Words
from margincast.frozen.tokens.space import first_pull
from margincast.recipe.losses import Loss
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.results import Json, Result


@dataclass(frozen=True)
class Falls:
    """Shares of `pairs` pairs whose response becomes less likely, over the run or at its start, and mean changes of
    log pi over the run."""

    pairs: int
    chosen_falls: float
    chosen_falls_at_start: float
    rejected_falls: float
    mean_delta_chosen: float
    mean_delta_rejected: float


@dataclass(frozen=True)
class Displacement:
    """What becomes of the likelihoods of one split's pairs; columns are the chosen and the rejected response.

    forecast: (pairs, 2) change of log pi over the forecast run;  rates: (pairs, 2) d log pi/dt at its start
    ches, ches_length_normalized: (pairs,)
    blame: (pairs,) what each training pair adds to d/dt, at the start, of the summed log pi of those chosen responses,
    of both splits, that the forecast lets fall: below 0 it pushes them down;  blame_by_position: (P,) by its positions.
    None for held-out pairs, which push nothing
    """

    forecast: Tensor
    rates: Tensor
    ches: Tensor
    ches_length_normalized: Tensor
    blame: Tensor | None = None
    blame_by_position: Tensor | None = None

    @property
    def falls(self) -> Falls:
        """How many of the split's responses become less likely."""
        shares = (self.forecast < 0).double().mean(0).tolist()
        means = self.forecast.double().mean(0).tolist()
        return Falls(
            pairs=len(self.forecast),
            chosen_falls=shares[0],
            chosen_falls_at_start=float((self.rates[:, 0] < 0).double().mean()),
            rejected_falls=shares[1],
            mean_delta_chosen=means[0],
            mean_delta_rejected=means[1],
        )


@dataclass(frozen=True)
class BlamedToken:
    """A word of the vocabulary on one side: what all its `times` places there add to the rate that `Displacement.blame`
    is of."""

    text: str
    side: str
    times: int
    blame: float


@dataclass(frozen=True)
class Exported:
    """Where the pairs without the worst were written, and the ids of these, the worst first."""

    file: str
    worst: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Displacements(Result):
    """Whose likelihoods fall over a run of the unembedding, and who pushes them down.

    train, heldout: of `train_pairs` and `heldout_pairs`, after `steps` steps;  origin: what was forecast
    worst_tokens: training tokens that push the falling chosen responses down most, the worst first
    exported: the cleaned data, where `write_without_worst` wrote any
    """

    presenter: ClassVar[str] = "displacements"

    train_pairs: PairSet
    heldout_pairs: PairSet
    train: Displacement
    heldout: Displacement
    origin: str
    steps: int
    worst_tokens: tuple[BlamedToken, ...]
    exported: Exported | None = None

    def __repr__(self) -> str:
        train, heldout = self.train.falls.chosen_falls, self.heldout.falls.chosen_falls
        return f"Displacements(step {self.steps}: chosen falls for {train:.0%} of training, {heldout:.0%} of held-out)"

    def worst(self, share: float) -> PairSet:
        """Training pairs that push the falling chosen responses down most: at most `share` of them, the worst first.

        Raises `InputError` for a share that is not between 0 and 1.
        """
        if not 0.0 < share < 1.0:
            raise InputError(f"worst must be between 0 and 1, got {share:g}")
        return PairSet(tuple(self.train_pairs[k] for k in to_drop(self.train, share)))

    def rows(self) -> list[Json]:
        """The rows of `displacement.jsonl`, training pairs first; `blame` is None for held-out pairs."""
        parts = (("train", self.train_pairs, self.train), ("heldout", self.heldout_pairs, self.heldout))
        return [
            {
                "id": pair.id,
                "split": name,
                "source": pair.source,
                "line": pair.line,
                "forecast_delta_logp_chosen": float(split.forecast[k, 0]),
                "forecast_delta_logp_rejected": float(split.forecast[k, 1]),
                "rate_logp_chosen": float(split.rates[k, 0]),
                "rate_logp_rejected": float(split.rates[k, 1]),
                "ches": float(split.ches[k]),
                "ches_length_normalized": float(split.ches_length_normalized[k]),
                "blame": None if split.blame is None else float(split.blame[k]),
            }
            for name, pairs, split in parts
            for k, pair in enumerate(pairs)
        ]


def displacements(positions: Positions, recipe: Recipe, *, word: Words = str, progress: bool = False) -> Displacements:
    """Forecast the likelihoods of every pair over the run of `recipe`, and say which training pairs push them down.

    word: the text of a token, as a tokenizer's `decode` gives it; by itself its number

    Raises what `forecast_positions` raises.
    """
    recipe = recipe.for_pairs(len(positions.train_pairs))
    positions = positions.averaged(recipe.loss.averaged)
    # float32: three times as fast, and the changes it is after are far above its rounding.
    recorded = replace(recipe, eval_steps=recipe.steps)
    forecast = forecast_positions(positions, recorded, dtype=torch.float32, progress=progress)
    there = positions.there()
    unembedding = there.unembedding.to(there.train.hidden)
    both = displacement(there.train, there.heldout, forecast, unembedding, recipe.loss, there.bias)
    return Displacements(
        positions.train_pairs,
        positions.heldout_pairs,
        *both,
        origin=forecast.origin,
        steps=recipe.steps,
        worst_tokens=_worst_tokens(positions.train, both[0], word),
    )


@torch.no_grad()
def displacement(
    train: TokenFeatures,
    heldout: TokenFeatures,
    forecast: Trajectory,
    unembedding: Tensor,
    loss: Loss,
    bias: Tensor | None = None,
) -> tuple[Displacement, Displacement]:
    """Forecast and scores of both splits, and who is to blame, on the CPU wherever the features are.

    forecast: of `forecast_positions` on these features
    """
    weights = first_pull(train, unembedding, loss, forecast.beta, bias)
    moves = velocity(train, weights, unembedding, bias)
    changes = [_changes(split, forecast.beta) for split in (forecast.train, forecast.heldout)]
    falls = [
        (change[:, 0] < 0).to(each.pair.device)[each.pair] & (each.sign > 0)
        for change, each in zip(changes, (train, heldout), strict=True)
    ]
    # The softmax of a position is made once for all that is asked of it, and asked of no pair twice.
    of_heldout, wanted = _along_and_velocity(heldout, moves, falls[1], unembedding, bias)
    wanted += velocity(train.positions(falls[0]), weights.new_ones(int(falls[0].sum())), unembedding, bias)
    of_train, pushed = along(train, [moves, wanted], unembedding, bias)
    results = [
        Displacement(
            change,
            each.per_response(each.share * rates).cpu(),
            ches(each).cpu(),
            ches(each, length_normalized=True).cpu(),
        )
        for each, change, rates in zip((train, heldout), changes, (of_train, of_heldout), strict=True)
    ]
    blame = weights * pushed  # Eq. 16, summed over the positions that fall
    by_pair = blame.new_zeros(train.pairs).index_add_(0, train.pair, blame)
    return replace(results[0], blame=by_pair.cpu(), blame_by_position=blame.cpu()), results[1]


def _along_and_velocity(
    features: TokenFeatures, direction: Tensor, mask: Tensor, unembedding: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`along` of all positions, (P,), and `velocity` of those where `mask`, each with weight 1, (V, hidden)."""
    rates = (direction[features.target] * features.hidden).sum(1)
    total = torch.zeros_like(unembedding).index_add_(0, features.target[mask], features.hidden[mask])
    for rows, probability in distributions(features, unembedding, bias):
        hidden, mine = features.hidden[rows], mask[rows]
        rates[rows] -= ((probability @ direction) * hidden).sum(1)
        if bool(mine.any()):
            total.addmm_(probability[mine].T, hidden[mine], alpha=-1.0)
    return rates, total


def _changes(split: SplitTrajectory, beta: float) -> Tensor:
    """(pairs, 2) changes of log pi from the first to the last recorded step."""
    assert split.chosen is not None
    both = torch.stack([split.chosen, split.chosen - split.margins], dim=2)
    return (both[-1] - both[0]) / beta


def response_rates(
    train: TokenFeatures,
    targets: TokenFeatures,
    unembedding: Tensor,
    loss: Loss,
    beta: float,
    bias: Tensor | None = None,
) -> Tensor:
    """d/dt of log pi of every target response at the start of training the unembedding, (pairs, 2), chosen first.

    A negative first column is a chosen response that training on `train` makes less likely from its first step on.
    """
    weights = first_pull(train, unembedding, loss, beta, bias)
    return targets.per_response(along(targets, [velocity(train, weights, unembedding, bias)], unembedding, bias)[0])


def ches(features: TokenFeatures, *, length_normalized: bool = False) -> Tensor:
    """The centered hidden embedding similarity of every pair, (pairs,) float64 (Razin et al. 2024, arXiv 2410.08847).

    Larger means that the chosen response is expected to lose more. Hidden states of the response positions alone are
    summed; `length_normalized` takes their means.
    """
    sums = features.per_response(features.hidden.double())
    if length_normalized:
        ones = sums.new_ones(len(features.hidden), 1)
        sums = sums / features.per_response(ones)
    chosen, rejected = sums.unbind(1)
    return (chosen * rejected).sum(1) - (chosen * chosen).sum(1)


def to_drop(train: Displacement, share: float) -> list[int]:
    """Training pairs that push the falling chosen responses down most: at most `share` of them, the worst first."""
    assert train.blame is not None
    order = torch.argsort(train.blame, stable=True).tolist()
    return [k for k in order[: round(share * len(order))] if float(train.blame[k]) < 0]


def _worst_tokens(features: TokenFeatures, train: Displacement, word: Words) -> tuple[BlamedToken, ...]:
    """The training tokens, of one side each, that push the falling chosen responses down most."""
    assert train.blame_by_position is not None
    kinds, which = torch.unique(2 * features.target + features.response % 2, return_inverse=True)
    blame = train.blame_by_position.new_zeros(len(kinds)).index_add_(0, which, train.blame_by_position)
    times = torch.bincount(which, minlength=len(kinds))
    return tuple(
        BlamedToken(word(int(kinds[k]) // 2), SIDES[int(kinds[k]) % 2], int(times[k]), float(blame[k]))
        for k in torch.argsort(blame, stable=True)[:SHOWN].tolist()
    )
