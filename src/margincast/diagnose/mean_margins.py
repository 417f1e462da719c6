"""Which training pairs make the mean held-out margins of responses of many tokens?

Here a margin costs a matrix of the unembedding's shape to attribute, so sums are of the mean margin of every held-out
concept, not of every pair; what a training pair adds to the mean over all held-out pairs is the mean of those, weighed
by how many pairs a concept has. They add up at the last step of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.effects import MarginParts, Part
from margincast.diagnose.interaction import Interaction
from margincast.features.positions import Positions
from margincast.frozen.attribution.of_pair import PairAttribution
from margincast.frozen.attribution.targets import Target
from margincast.frozen.tokens.forecast import TokenForecast
from margincast.records import PairSet

# Three matrices of the unembedding's shape a target; what does not fit goes through the run once more.
TOGETHER_BYTES = 4 << 30


@dataclass(frozen=True)
class SumParts(MarginParts):
    """With every contribution, in the order of the training pairs, so that

        margin = start + sum(contributions) + residual

    start: the part of no pair, which only weight decay, losses without a reference and trained adapters have
    residual: rounding, or what quadrature leaves
    """

    contributions: tuple[float, ...]
    start: float
    residual: float


@dataclass(frozen=True)
class MeanMargins:
    """Sums over the training pairs of mean held-out margins after the last step.

    concepts: of every held-out concept;  pair: of the one that was asked for;  overall: of all held-out pairs
    """

    concepts: tuple[PairAttribution, ...]
    overall: PairAttribution
    pair: PairAttribution | None = None

    @property
    def sum_error(self) -> float:
        """How far the sums miss their margins, of the largest one."""
        found = [*self.concepts, *([self.pair] if self.pair else [])]
        return max(abs(each.residual) for each in found) / max(1e-300, *(abs(each.margin) for each in found))


def mean_margins(forecast: TokenForecast, pair: str | None = None) -> MeanMargins:
    """The sums of a forecast. pair: id of a training or held-out pair whose margin to add up too"""
    heldout = forecast.heldout.pairs
    targets = [forecast.target(concept=name) for name in heldout.concepts]
    if pair is not None:
        split = "heldout" if any(each.id == pair for each in heldout) else "train"
        targets.append(forecast.target(pair, split=split))
    found = _attributions(forecast, targets)
    concepts, asked = found[: len(heldout.concepts)], found[len(heldout.concepts) :]
    return MeanMargins(concepts, _overall(concepts, heldout), asked[0] if asked else None)


def _attributions(forecast: TokenForecast, targets: Sequence[Target]) -> tuple[PairAttribution, ...]:
    """Of all targets, so many at once as fit."""
    width = torch.empty(0, dtype=forecast.dtype).element_size()
    each = 3 * forecast.features.unembedding.numel() * width
    count = max(1, TOGETHER_BYTES // each)
    parts = [targets[first : first + count] for first in range(0, len(targets), count)]
    return tuple(found for part in parts for found in forecast.attributions(part))


def _overall(concepts: Sequence[PairAttribution], heldout: PairSet) -> PairAttribution:
    shares = [heldout.counts[each.id] / len(heldout) for each in concepts]

    def mean(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    first = concepts[0]
    return PairAttribution(
        id="all heldout pairs",
        split="heldout",
        step=first.step,
        pairs=first.pairs,
        values=torch.tensor(shares, dtype=torch.float64) @ torch.stack([each.values for each in concepts]),
        start=mean([each.start for each in concepts]),
        margin=mean([each.margin for each in concepts]),
    )


def sum_parts(found: PairAttribution, concept: str, count: int) -> SumParts:
    """`found`, of pairs of `concept`, with its `count` largest contributions."""
    top = found.top(count)
    values: list[float] = found.values.tolist()
    return SumParts(
        id=found.id,
        concept=concept,
        margin=found.margin,
        positive=sum(value for value in values if value > 0),
        negative=sum(value for value in values if value < 0),
        rest=sum(values) - sum(each.value for each in top),
        top=tuple(Part(each.pair.id, each.value) for each in top),
        contributions=tuple(values),
        start=found.start,
        residual=found.residual,
    )


def mean_interaction(positions: Positions, found: MeanMargins) -> Interaction:
    """What the training pairs of every concept add to the mean margin of every held-out one, at the last step."""
    trained = positions.train_pairs.concepts
    groups = torch.tensor([trained.index(pair.concept) for pair in positions.train_pairs])
    columns: list[Tensor] = [
        each.values.new_zeros(len(trained)).index_add_(0, groups, each.values) for each in found.concepts
    ]
    heldout = tuple(each.id for each in found.concepts)
    return Interaction((found.overall.step,), trained, heldout, torch.stack(columns, dim=1)[None], None)
