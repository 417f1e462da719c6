"""What does the fit read of a run? Its parts in nats, made once: shapes, offset paths, amplitudes, ranks of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.trained.inputs import deep_spaces, heldout_nats, plan_of, responses_of
from margincast.trained.laws import (
    EffectiveForecast,
    Laws,
    PilotLaw,
    PilotMargins,
    Plan,
    Responses,
    ShapeLaw,
    corrected,
    effective_forecast,
    shape_spread,
    shared_path,
)
from margincast.trained.offset import OffsetLaw, Parts
from margincast.trained.shape import Spectrum, token_spectra, unit
from margincast.trained.trained_run import TrainedRun

RIDGE = 1e-3  # of shapes, relative to the largest eigenvalue
LEAST = 0.1  # nats: a run that ends lower is taken to end there, so that its logarithm is finite


@dataclass(frozen=True)
class FitRun:
    """A `TrainedRun` with what follows from it, calculated when it is first asked for. Margins are over beta."""

    trained: TrainedRun
    _known: dict[object, Any] = field(default_factory=dict, repr=False)

    def known(self, key: object, calculate: Callable[[], Any]) -> Any:
        """What `calculate` gives, calculated once for `key`."""
        if key not in self._known:
            self._known[key] = calculate()
        return self._known[key]

    @property
    def data(self) -> str:
        return self.trained.data

    @cached_property
    def spaces(self) -> tuple[TokenSpace, TokenSpace]:
        return token_spaces(self.trained.features, self.trained.recipe, torch.float64)

    @cached_property
    def responses(self) -> Responses:
        return responses_of(self.trained.features, self.trained.features.heldout)

    @cached_property
    def groups(self) -> list[list[int]]:
        """Rows of the held-out pairs of every concept."""
        count = int(self.responses.concepts.max()) + 1
        return [(self.responses.concepts == number).nonzero()[:, 0].tolist() for number in range(count)]

    @cached_property
    def plan(self) -> Plan:
        return plan_of(self.trained.recipe, len(self.trained.features.train.pairs))

    @property
    def max_steps(self) -> int:
        return self.trained.recipe.steps

    @property
    def lora(self) -> bool:
        return self.plan.lora

    @cached_property
    def steps(self) -> list[int]:
        """The recorded steps of the run, whose last is its end."""
        return [step for step in self.trained.trajectory.steps if step <= self.max_steps]

    @cached_property
    def margins(self) -> Tensor:
        """(recorded steps, pairs) of held-out pairs."""
        features, recipe = self.trained.features, self.trained.recipe
        return heldout_nats(self.trained.trajectory, features, recipe, "the run")[: len(self.steps)]

    @cached_property
    def rehearsal_margins(self) -> Tensor:
        """(pairs,) at the end of the rehearsal."""
        assert self.trained.rehearsal is not None  # `fit_constants` has checked
        return self.trained.rehearsal.heldout.double() / self.trained.recipe.beta

    def part(self, margins: Tensor) -> Parts:
        return self.responses.part(margins)

    @cached_property
    def parts(self) -> Parts:
        return self.part(self.margins)

    @cached_property
    def end(self) -> Parts:
        return self.part(self.margins[-1])

    @cached_property
    def rehearsal_parts(self) -> Parts:
        return self.part(self.rehearsal_margins)

    @property
    def rehearsal_reached(self) -> float:
        """The mean margin of the rehearsal without offsets."""
        return float(self.rehearsal_parts.rest.mean())

    @cached_property
    def sizes(self) -> list[float]:
        """The mean margin without offsets, at every recorded step."""
        sizes: list[float] = self.parts.rest.mean(1).tolist()
        return sizes

    @cached_property
    def amplitude(self) -> float:
        """Where `sizes` ends."""
        return max(LEAST, float(self.end.rest.mean()))

    def length(self, step: int) -> float:
        """The path length after `step` steps, in the units of `Plan.lengths`."""
        return float(self.plan.lengths[step])

    @cached_property
    def spectrum(self) -> Spectrum:
        train, heldout = deep_spaces(self.trained.features, self.trained.recipe, self.plan.taken)
        return token_spectra(train.rows(self.plan.taken), heldout)[0]

    @cached_property
    def spread(self) -> float:
        """sigma of `amplitude`, of the frozen shape."""
        return shape_spread(self.spectrum, self.responses, ShapeLaw(0.0, 0.0, RIDGE))

    def shape(self, alpha: float) -> Tensor:
        """The frozen shape without offsets, (pairs,)."""
        shape: Tensor = self.known(("shape", alpha), lambda: unit(self.part(self.spectrum.shape(alpha, RIDGE)).rest))
        return shape

    def amplitude_by(self, laws: Laws) -> float:
        """What features alone say."""
        return self.plan.amplitude(laws.amplitude, self.spread)

    def offset_path(self, law: OffsetLaw) -> Tensor:
        """(steps + 1, pairs) shift that follows from the batch order; `law.remaining` has no part in it."""
        path: Tensor = self.known(
            ("path", law.rate, law.growth), lambda: shared_path(self.spaces[0], self.responses, self.plan, law)
        )
        return path

    def forecast(self, laws: Laws) -> EffectiveForecast:
        """The forecast of this run by `laws`, beside its rehearsal where they have constants of one."""
        rehearsal = None if laws.rehearsal is None else self.rehearsal_margins
        return effective_forecast(
            self.spectrum, self.offset_path(laws.offset), self.responses, self.plan, laws, rehearsal
        )

    def corrected(self, forecast: EffectiveForecast, pilot: PilotMargins, law: PilotLaw) -> EffectiveForecast:
        """`forecast` after a pilot of this run."""
        return corrected(forecast, self.responses, self.plan.lengths / self.plan.lengths[-1], pilot, law)


def rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's, 0 where all of one side are alike."""
    return float(np.nan_to_num(spearmanr(left.numpy(), right.numpy()).statistic))
