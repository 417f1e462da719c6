"""Whose chosen likelihood will fall? Rates of log-probabilities at the start, and the CHES score beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.features.positions import TokenFeatures
from margincast.frozen.tokens.decomposition import along, pull, velocity
from margincast.recipe.losses import Loss
from margincast.records import Json, PairSet, SplitTrajectory, Trajectory


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


@torch.no_grad()
def displacement(
    train: TokenFeatures,
    heldout: TokenFeatures,
    forecast: Trajectory,
    unembedding: Tensor,
    loss: Loss,
    bias: Tensor | None = None,
) -> tuple[Displacement, Displacement]:
    """Forecast and scores of both splits, and who is to blame. forecast: of `forecast_tokens` on the same features."""
    weights = pull(train, loss, forecast.beta, train.hidden.new_zeros(train.pairs))
    moves = velocity(train, weights, unembedding, bias)
    wanted = torch.zeros_like(unembedding)
    results = []
    for targets, split in ((train, forecast.train), (heldout, forecast.heldout)):
        change = _changes(split, forecast.beta)
        rates = targets.per_response(along(targets, moves, unembedding, bias))
        results.append(Displacement(change, rates, ches(targets), ches(targets, length_normalized=True)))
        falls = (change[:, 0] < 0)[targets.pair] & (targets.sign > 0)
        wanted += velocity(targets.positions(falls), weights.new_ones(int(falls.sum())), unembedding, bias)
    blame = weights * along(train, wanted, unembedding, bias)  # Eq. 16, summed over the positions that fall
    by_pair = blame.new_zeros(train.pairs).index_add_(0, train.pair, blame)
    return replace(results[0], blame=by_pair, blame_by_position=blame), results[1]


def _changes(split: SplitTrajectory, beta: float) -> Tensor:
    """(pairs, 2) changes of log pi from the first to the last recorded step."""
    assert split.chosen is not None
    return torch.stack([split.chosen[-1], split.chosen[-1] - split.margins[-1]], dim=1) / beta


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
    weights = pull(train, loss, beta, train.hidden.new_zeros(train.pairs))
    return targets.per_response(along(targets, velocity(train, weights, unembedding, bias), unembedding, bias))


def ches(features: TokenFeatures, *, length_normalized: bool = False) -> Tensor:
    """The centered hidden embedding similarity of every pair, (pairs,) float64 (Razin et al. 2024, arXiv 2410.08847).

    Larger means that the chosen response is expected to lose more. Hidden states of the response positions alone are
    summed; `length_normalized` takes their means.
    """
    sums = features.per_response(features.hidden.double())
    if length_normalized:
        ones = torch.ones(len(features.hidden), 1, dtype=torch.float64)
        sums = sums / features.per_response(ones)
    chosen, rejected = sums.unbind(1)
    return (chosen * rejected).sum(1) - (chosen * chosen).sum(1)


def to_drop(train: Displacement, share: float) -> list[int]:
    """Training pairs that push the falling chosen responses down most: at most `share` of them, the worst first."""
    assert train.blame is not None
    order = torch.argsort(train.blame, stable=True).tolist()
    return [k for k in order[: round(share * len(order))] if float(train.blame[k]) < 0]


def displacement_rows(pairs: tuple[PairSet, PairSet], splits: tuple[Displacement, Displacement]) -> list[Json]:
    """The rows of `displacement.jsonl`; `blame` is None for held-out pairs."""
    rows = []
    for name, of_split, split in zip(("train", "heldout"), pairs, splits, strict=True):
        for k, pair in enumerate(of_split):
            rows.append(
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
            )
    return rows


def split_summary(split: Displacement) -> dict[str, float]:
    """Shares and means over the pairs of a split."""
    falls = (split.forecast < 0).double().mean(0).tolist()
    means = split.forecast.double().mean(0).tolist()
    return {
        "pairs": len(split.forecast),
        "chosen_falls": falls[0],
        "chosen_falls_at_start": float((split.rates[:, 0] < 0).double().mean()),
        "rejected_falls": falls[1],
        "mean_delta_chosen": means[0],
        "mean_delta_rejected": means[1],
    }


def worst_tokens(features: TokenFeatures, train: Displacement, word: Callable[[int], str], count: int) -> list[Json]:
    """The `count` training tokens, of one side each, that push the falling chosen responses down most."""
    assert train.blame_by_position is not None
    kinds, which = torch.unique(2 * features.target + features.response % 2, return_inverse=True)
    blame = train.blame_by_position.new_zeros(len(kinds)).index_add_(0, which, train.blame_by_position)
    times = torch.bincount(which, minlength=len(kinds))
    return [
        {
            "text": word(int(kinds[k]) // 2),
            "side": ("chosen", "rejected")[int(kinds[k]) % 2],
            "times": int(times[k]),
            "blame": float(blame[k]),
        }
        for k in torch.argsort(blame, stable=True)[:count].tolist()
    ]
