"""What will margins do when every weight trains? The effective model, put together.

    m_j(s) / beta = A(s) h_j + delta_j . b(s)

h and A come from frozen features (`shape`, `amplitude`) or from a rehearsal (`rehearsal`), A's way to the end from
`growth`, b from the batch order (`offset`) and the rehearsal. A pilot, some first steps of the run itself, corrects all
of them by what it recorded, the more the longer it is. The numbers in all laws are in `constants`; `fit` estimates them
from finished runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss
from margincast.recipe.optimizer import Optimizer
from margincast.trained.amplitude import ALPHA, AmplitudeLaw, bounded_spread
from margincast.trained.growth import GrowthLaw
from margincast.trained.noise import Noise
from margincast.trained.offset import Kind, OffsetLaw, Parts, kinds_of, offset_path, parted
from margincast.trained.rehearsal_law import RehearsalLaw, levelled
from margincast.trained.shape import Spectrum, unit
from margincast.trained.time import ADAPTER_UNIT, UNIT

LARGEST_RESCALING = 4.0  # factor by which margins are made larger, or smaller, again after their signs were set


@dataclass(frozen=True)
class ShapeLaw:
    """The alpha of a run that ends at A nats: alpha + rise log A, within [0, 1].  ridge: see `shape`"""

    alpha: float
    rise: float
    ridge: float

    def of(self, end: float) -> float:
        alpha = self.alpha + self.rise * math.log(max(end, 0.1))
        return round(min(max(alpha, 0.0), 1.0), 2)


@dataclass(frozen=True)
class PilotLaw:
    """What a pilot recorded at x, its part of the path, counts by x^exponent: for amplitude, offsets and shape."""

    amplitude: float
    offset: float
    shape: float


@dataclass(frozen=True)
class Laws:
    """All constants of a forecast, law by law. rehearsal: None where the forecast is from features alone"""

    offset: OffsetLaw
    amplitude: AmplitudeLaw
    growth: GrowthLaw
    shape: ShapeLaw
    rehearsal: RehearsalLaw | None
    pilot: PilotLaw
    noise: Noise


@dataclass(frozen=True)
class Plan:
    """A run that is to come. learning_rates: of each step, as scheduled;  batches: of each step"""

    learning_rates: Sequence[float]
    batches: Sequence[Batch]
    optimizer: Optimizer
    loss: Loss
    lora: bool = False

    @cached_property
    def lengths(self) -> Tensor:
        """(steps + 1,) path length so far, in units of `time.UNIT` or, of an adapter, `time.ADAPTER_UNIT`."""
        unit = ADAPTER_UNIT if self.lora else UNIT
        return torch.tensor([0.0, *self.learning_rates], dtype=torch.float64).cumsum(0) / unit

    @property
    def pairs(self) -> int:
        """Pairs that training takes, as often as it takes them."""
        return sum(len(batch.rows) for batch in self.batches)

    def amplitude(self, law: AmplitudeLaw, spread: float = 1.0) -> float:
        return law.at(float(self.lengths[-1]), self.pairs, spread, self.lora)

    @cached_property
    def taken(self) -> Tensor:
        """Rows of the pairs that training takes, once each: what others would have taught is not learned."""
        rows: Tensor = torch.unique(torch.cat([batch.rows for batch in self.batches]))
        return rows


@dataclass(frozen=True)
class Responses:
    """The responses and concepts of pairs. chosen, rejected: (pairs,) token indices;  concepts: (pairs,) numbers"""

    chosen: Tensor
    rejected: Tensor
    concepts: Tensor

    @cached_property
    def kinds(self) -> tuple[list[Kind], list[Kind]]:
        """Of all pairs, and of every concept."""
        return kinds_of(self.chosen, self.rejected), kinds_of(self.chosen, self.rejected, self.concepts)

    def part(self, margins: Tensor) -> Parts:
        """margins: (..., pairs)"""
        return parted(margins, *self.kinds)


@dataclass(frozen=True)
class PilotMargins:
    """What a pilot recorded after `step` steps. margins: (pairs,) over beta"""

    margins: Tensor
    step: int


@dataclass(frozen=True)
class EffectiveForecast:
    """Margins over beta, in nats: (steps + 1, pairs) each, of which the margin is the sum.

    rest: without offsets;  shift: their part
    """

    rest: Tensor
    shift: Tensor


def shared_path(train: TokenSpace, responses: Responses, plan: Plan, law: OffsetLaw) -> Tensor:
    """The shift that follows from the batch order, (steps + 1, pairs) in nats."""
    if plan.lora:  # an adapter begins at 0 and moves nothing at first; its offsets are not those of all weights
        return torch.zeros(len(plan.lengths), len(responses.chosen), dtype=torch.float64)
    logits = offset_path(
        train.chosen, train.rejected, train.tokens, plan.batches, plan.learning_rates, plan.optimizer, plan.loss,
        train.beta, law, train.start,
    )  # fmt: skip
    return logits[:, responses.chosen] - logits[:, responses.rejected]


def effective_forecast(
    features: Spectrum | None, path: Tensor, responses: Responses, plan: Plan, laws: Laws,
    rehearsal_margins: Tensor | None = None, pilot_margins: PilotMargins | None = None,
) -> EffectiveForecast:  # fmt: skip
    """What `plan` will do to margins when every weight trains, at every step.

    features: of these pairs against the training pairs, None where there is only a rehearsal
    path: (steps + 1, pairs) shift that follows from the batch order
    rehearsal_margins: (pairs,) over beta, at the end of a rehearsal;  pilot_margins: of a pilot
    """
    x = plan.lengths / plan.lengths[-1]
    shift = path * laws.offset.fading(x)[:, None]
    spread = shape_spread(features, responses, laws.shape)
    level: Tensor | None
    if rehearsal_margins is None or laws.rehearsal is None:
        if features is None:
            raise ValueError("a forecast needs features or a rehearsal")
        end = plan.amplitude(laws.amplitude, spread)
        shape = level = frozen_shape(features, responses, laws.shape, end)
    else:
        law, parts = laws.rehearsal, responses.part(rehearsal_margins.double())
        end = law.at(float(parts.rest.mean()), plan.amplitude(law.amplitude, spread))
        shape, level = unit(parts.rest), None
        if features is not None:
            shape, level = law.mixed(parts.rest, frozen_shape(features, responses, laws.shape, end), responses.concepts)
        shift = shift + x[:, None] * law.offsets(parts, None if features is None else responses.concepts)
    rest = end * shape
    if level is not None:
        # The accuracy of `level` in every concept, the order that offsets make, and a mean as large as before.
        ends = levelled(rest + shift[-1], level, responses.concepts)
        rest = (
            ends * ((end + shift[-1].mean()) / ends.mean()).clamp(1.0 / LARGEST_RESCALING, LARGEST_RESCALING)
            - shift[-1]
        )
    effective = EffectiveForecast(laws.growth.factors(x, end)[:, None] * rest, shift)
    return effective if pilot_margins is None else corrected(effective, responses, x, pilot_margins, laws.pilot)


def frozen_shape(features: Spectrum, responses: Responses, law: ShapeLaw, end: float) -> Tensor:
    """h of a run that ends at `end` nats, (pairs,) without offsets and with a mean of 1."""
    return unit(responses.part(features.shape(law.of(end), law.ridge)).rest)


def shape_spread(features: Spectrum | None, responses: Responses, law: ShapeLaw) -> float:
    """sigma of `amplitude`; where there are no features, that of a shape that spreads as far as its mean is."""
    return 1.0 if features is None else bounded_spread(unit(responses.part(features.shape(ALPHA, law.ridge)).rest))


def corrected(
    effective: EffectiveForecast, responses: Responses, x: Tensor, pilot_margins: PilotMargins, law: PilotLaw
) -> EffectiveForecast:
    """`effective` after a pilot: the gap between it and what the pilot recorded counts by its part of the run."""
    part = float(x[pilot_margins.step] / x[-1])
    parts = responses.part(pilot_margins.margins.double())
    expected, reached = float(effective.rest[pilot_margins.step].mean()), float(parts.rest.mean())
    factor = (max(reached, 0.05) / max(expected, 0.05)) ** (part**law.amplitude)
    shapes = unit(effective.rest[-1]), unit(parts.rest)
    shape = shapes[0] + part**law.shape * (shapes[1] - shapes[0])
    rest = factor * effective.rest.mean(1, keepdim=True) * shape
    # Offsets wander: a gap stays as long as the pilot was, and is forgotten later.
    kept = (part / x.clamp_min(part)) ** law.offset
    gap = parts.shift - effective.shift[pilot_margins.step]
    return EffectiveForecast(rest, effective.shift + (kept * (x > 0))[:, None] * gap)
