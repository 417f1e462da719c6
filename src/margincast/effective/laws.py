"""What will held-out margins do when every weight trains? The effective model, put together, and its constants.

    m_j(s) / beta = delta_j . b(s) + A(L(s)) h_j / mean h

b follows from the batch order (`offset`), A from how far the run has gone (`amplitude`), h from frozen features
(`shape`), or h and A from a rehearsal. Constants were fitted on SmolLM2 by `benchmarks/forecast/evaluate.py`; another
model needs its own `OffsetLaw` and scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.dynamics.batches import Batch
from margincast.dynamics.optimizers import AdamW
from margincast.dynamics.state import TokenSpace
from margincast.effective.amplitude import AmplitudeLaw, signal_share
from margincast.effective.offset import OffsetLaw, offset_path, without_offset
from margincast.effective.shape import spectral_shape
from margincast.effective.time import UNIT
from margincast.losses import Loss


@dataclass(frozen=True)
class Laws:
    """offset, amplitude: their laws;  alpha, ridge: of the shape

    rehearsed: real A over the A of a rehearsal;  trust: part of the rehearsal, against the frozen shape, in h
    """

    offset: OffsetLaw
    amplitude: AmplitudeLaw
    alpha: float
    ridge: float
    rehearsed: float
    trust: float


@dataclass(frozen=True)
class Plan:
    """A run that is to come. learning_rates: of each step, as scheduled;  batches: of each step"""

    learning_rates: Sequence[float]
    batches: Sequence[Batch]
    optimizer: AdamW
    loss: Loss


@dataclass(frozen=True)
class EffectiveForecast:
    """Held-out margins over beta, in nats: (steps + 1, pairs) each, of which the margin is the sum.

    rest: without the shared offset;  shift: its part
    """

    rest: Tensor
    shift: Tensor


def effective_forecast(
    train: TokenSpace, heldout: TokenSpace, plan: Plan, laws: Laws, rehearsed: Tensor | None = None
) -> EffectiveForecast:
    """What `plan` will do to held-out margins when every weight trains, at every step.

    rehearsed: (pairs,) held-out margins over beta at the end of a rehearsal
    """
    logits = offset_path(
        train.chosen, train.rejected, train.tokens, plan.batches, plan.learning_rates, plan.optimizer, plan.loss,
        train.beta, laws.offset,
    )  # fmt: skip
    shift = logits[:, heldout.chosen] - logits[:, heldout.rejected]
    signal, size = signal_share(train), max(len(batch.rows) for batch in plan.batches)
    lengths = torch.tensor([0.0, *plan.learning_rates], dtype=torch.float64).cumsum(0) / UNIT
    sizes = [laws.amplitude.at(float(length), size, signal) for length in lengths]
    amplitude = torch.tensor(sizes, dtype=torch.float64)
    shape = spectral_shape(train, heldout, laws.alpha, laws.ridge)
    shape = unit(without_offset(shape, heldout.chosen, heldout.rejected)[0])
    if rehearsed is not None:
        rest, _ = without_offset(rehearsed.double(), heldout.chosen, heldout.rejected)
        # The rehearsal says how far the run gets; the law, how it gets there.
        amplitude = amplitude * (laws.rehearsed * abs(float(rest.mean())) / float(amplitude[-1]))
        shape = laws.trust * unit(rest) + (1.0 - laws.trust) * shape
    return EffectiveForecast(amplitude[:, None] * shape, shift)


def unit(shape: Tensor) -> Tensor:
    """`shape` with a mean of size 1, its sign kept; where the mean says nothing, against its own spread."""
    mean, spread = shape.mean().abs(), shape.std()
    return shape / torch.where(mean > 1e-3 * spread, mean, spread.clamp_min(1e-300))
