"""What will margins of responses of many tokens do when every weight trains, from features alone?

Such pairs differ more among themselves than in their mean, which may be near 0. So the size that is forecast is not the
mean margin but the root mean square of margins over beta, s, and the shape h keeps the mean that it has:

    m_j(x) / beta = s growth(x) h_j / rms(h),        s = size A

with A the amplitude of single tokens at a spread of 1 (`amplitude`), h of the kernel of pooled differences (`shape`).
`size` comes from two true runs of chat pairs; the noise is set as wide as two runs leave it, and not fitted:
docs/forecasting-full-fine-tuning.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from margincast.trained.constants import record_of
from margincast.trained.laws import EffectiveForecast, Laws, PilotMargins, Plan, Responses, ShapeLaw, corrected
from margincast.trained.noise import Noise
from margincast.trained.offset import Kind, Kinds
from margincast.trained.shape import Spectrum

SEQUENCES_FITTED_ON = "runs of SmolLM2-135M on persona questions and, for their size, on chat pairs"


@dataclass(frozen=True)
class SequenceLaw:
    """What is otherwise in runs whose responses have many tokens.

    shortest, longest: paths of the runs behind it
    size: s over A;  shape: as in `Laws`, of the kernel of pooled differences
    mean_noise: standard deviation of the mean margin's error, over the root mean square of margins
    rank: Spearman's correlation of the margins of pairs with those of the true runs, in the mean
    noise: as in `Laws`; its offsets are replaced by what `mean_noise` says
    """

    shortest: float
    longest: float
    size: float
    shape: ShapeLaw
    mean_noise: float
    rank: float
    noise: Noise


@cache
def sequence_law() -> SequenceLaw:
    """That of the package, of SmolLM2-135M."""
    path = files("margincast.trained").joinpath("sequences.json")
    return record_of(SequenceLaw, json.loads(path.read_text("utf-8")), "the sequence law of the package")


def sequence_forecast(
    features: Spectrum, responses: Responses, plan: Plan, laws: Laws, law: SequenceLaw, pilot: PilotMargins | None
) -> tuple[EffectiveForecast, Noise]:
    """What `plan` will do to margins at every step, and how far runs differ from that, offsets of `kinds_of_sequences`.

    features: of these pairs against the training pairs;  pilot: of this run
    """
    end = law.size * plan.amplitude(laws.amplitude)
    shape = features.shape(law.shape.of(end), law.shape.ridge)
    shape = shape / root_mean_square(shape)
    x = plan.lengths / plan.lengths[-1]
    rest = laws.growth.factors(x, end)[:, None] * (end * shape)
    effective = EffectiveForecast(rest, torch.zeros_like(rest))
    if pilot is not None:
        effective = corrected(effective, responses, x, pilot, laws.pilot)
    # The error of the mean grows as margins do: in `Noise` offsets are a power of the path length.
    power = laws.growth.of(end)
    mean = law.mean_noise * end / float(plan.lengths[-1]) ** power
    return effective, replace(law.noise, shared_offset=mean, concept_offset=mean, offset_power=power)


def kinds_of_sequences(concepts: Tensor) -> Kinds:
    """All pairs as one kind, and those of every concept, whose mean margins miss the forecast by one number each."""
    numbers = range(int(concepts.max()) + 1)
    none = torch.zeros_like(concepts, dtype=torch.bool)
    return [Kind(~none, none)], [Kind(concepts == number, none) for number in numbers]


def root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt().clamp_min(1e-300)
