"""What does a trajectory say in numbers? TRL's metric names, per concept too, for forecast and training alike.

`loss`, `rewards/margins` and so on are means over the recorded training pairs at the weights of that step;
`eval_*` over all held-out pairs; `eval_<concept>_*` over the held-out pairs of one concept; `effects/*` are of data
beside them (`runs.effects`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from margincast.intervals import mean_interval, proportion
from margincast.recipe.losses import Loss, get_loss
from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.results import Json
from margincast.runs.effects import effect_metrics

CHANCE = 0.5  # accuracy of margins that training moved by no rule
FEW_RESPONSES = 4  # different chosen responses; where there are more, accuracy is not split by them


def concept_rows(pairs: PairSet) -> dict[str, list[int]]:
    """For every concept, the indices of its pairs."""
    rows: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        rows.setdefault(pair.concept, []).append(index)
    return rows


def response_rows(pairs: PairSet) -> dict[str, list[int]]:
    """The indices of the pairs by their chosen response (of a conversation its last message), where there are from 2
    to `FEW_RESPONSES` of these; else nothing."""
    rows: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        text = pair.chosen if isinstance(pair.chosen, str) else str(pair.chosen[-1]["content"])
        rows.setdefault(text.strip(), []).append(index)
    return rows if 1 < len(rows) <= FEW_RESPONSES else {}


def metric_rows(trajectory: Trajectory) -> list[Json]:
    """One row per recorded step, as written to `metrics.jsonl`."""
    loss = get_loss(trajectory.loss_type, trajectory.beta, without_reference=True)
    return [{"step": step, **dict(_at(trajectory, loss, index))} for index, step in enumerate(trajectory.steps)]


def _at(trajectory: Trajectory, loss: Loss, index: int) -> Iterator[tuple[str, float]]:
    yield from _means(loss, trajectory.train, index, "", None)
    yield from _means(loss, trajectory.heldout, index, "eval_", None)
    for concept, rows in concept_rows(trajectory.heldout.pairs).items():
        yield from _means(loss, trajectory.heldout, index, f"eval_{concept}_", rows)
    yield from effect_metrics(trajectory, index)


def _means(
    loss: Loss, split: SplitTrajectory, index: int, prefix: str, rows: list[int] | None
) -> Iterator[tuple[str, float]]:
    def mean(values: Tensor) -> float:
        return float((values if rows is None else values[rows]).double().mean())

    margins = split.margins[index]
    yield f"{prefix}loss", mean(loss.value(margins.double()))
    yield f"{prefix}rewards/margins", mean(margins)
    yield f"{prefix}rewards/accuracies", mean((margins > 0).double())
    if split.chosen is not None:
        yield f"{prefix}rewards/chosen", mean(split.chosen[index])
        yield f"{prefix}rewards/rejected", mean(split.chosen[index] - margins)


def displacement(trajectory: Trajectory) -> dict[str, float | None]:
    """Share of the pairs of both splits, and of each, whose chosen response is less likely at the last recorded step
    than at the first; None where its rewards are not known, or where there are no pairs."""

    def falls(*splits: SplitTrajectory) -> float | None:
        known = [(each.chosen[-1] < each.chosen[0]).double() for each in splits if each.chosen is not None]
        counted = [share for shares in known for share in shares.tolist()]
        return sum(counted) / len(counted) if counted and len(known) == len(splits) else None

    train, heldout = trajectory.train, trajectory.heldout
    both = (train, heldout) if len(train.pairs) else (heldout,)
    return {"all": falls(*both), "train": falls(train), "heldout": falls(heldout)}


def response_results(trajectory: Trajectory) -> dict[str, dict[str, int]]:
    """Held-out pairs by their chosen response, where there are a few: how many, and how many of them are right (have a
    positive margin) at the last recorded step."""
    right = trajectory.heldout.margins[-1] > 0
    rows = response_rows(trajectory.heldout.pairs)
    return {name: {"right": int(right[members].sum()), "of": len(members)} for name, members in rows.items()}


def taking_all(counts: Mapping[str, Mapping[str, int]]) -> str | None:
    """The response that goes up for every prompt: by `response_results`, pairs that prefer it are right beyond chance,
    and pairs that prefer another are wrong beyond chance (95%). None where there is none."""
    shares = {name: proportion(each["right"], each["of"]) for name, each in counts.items()}
    wrong = any(share.high < CHANCE for share in shares.values())
    return next((name for name, share in shares.items() if share.low > CHANCE), None) if wrong else None


def concept_results(trajectory: Trajectory) -> dict[str, dict[str, dict[str, float]]]:
    """Held-out margin and accuracy of every concept at the last recorded step, with 95% intervals over pairs."""
    last = trajectory.heldout.margins[-1].double().cpu().numpy()
    return {
        concept: {
            "heldout_margin": mean_interval(last[rows]).as_dict(),
            "heldout_accuracy": proportion(int((last[rows] > 0).sum()), len(rows)).as_dict(),
        }
        for concept, rows in concept_rows(trajectory.heldout.pairs).items()
    }
