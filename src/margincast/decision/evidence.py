"""What does a forecast say that decides? Expected accuracies with all that is unknown of them, and curves by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scipy.stats import norm
from torch import Tensor

from margincast.intervals import LEVEL, Estimate, proportion
from margincast.records import Trajectory
from margincast.runs.metrics import CHANCE, concept_rows, displacement, response_rows
from margincast.trained.answers import still_rising, stops_rising
from margincast.trained.forecast import TrainedForecast
from margincast.trained.noise import COVERAGE

NEAR = 0.01  # of accuracy: less is no gain, nor is a single pair


@dataclass(frozen=True)
class Expected:
    """Held-out accuracy to expect of all pairs like these: a share with its 95% interval, and the pairs it is from.

    sure: whether more held-out pairs would narrow it down: always, but where the forecast itself holds chance possible
    """

    value: float
    low: float
    high: float
    pairs: int
    sure: bool = True

    @property
    def needed(self) -> int | None:
        """Held-out pairs by which this share is above chance, as Wilson's interval has it: n > z^2 / (2 p - 1)^2."""
        if self.value <= CHANCE or not self.sure:
            return None
        z = float(norm.ppf(0.5 + LEVEL / 2))
        return math.floor((z / (2 * self.value - 1)) ** 2) + 1


@dataclass(frozen=True)
class Evidence:
    """A forecast as rules look at it.

    length: `results.length` of responses of many tokens, where it was computed
    """

    forecast: Trajectory
    length: Mapping[str, Any] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        return self.forecast.steps

    @cached_property
    def overall(self) -> Expected:
        """Of all held-out pairs."""
        return self._expected("", list(range(len(self.forecast.heldout.pairs))))

    @cached_property
    def concepts(self) -> dict[str, Expected]:
        """Of every concept, where there are several; the best comes first."""
        rows = concept_rows(self.forecast.heldout.pairs)
        found = {name: self._expected(name, members) for name, members in rows.items()} if len(rows) > 1 else {}
        return dict(sorted(found.items(), key=lambda item: -item[1].value))

    def _expected(self, name: str, rows: Sequence[int]) -> Expected:
        if not isinstance(self.forecast, TrainedForecast):
            right = int((self.forecast.heldout.margins[-1][list(rows)] > 0).sum())
            found = proportion(right, len(rows))
            return Expected(found.value, found.low, found.high, len(rows))
        # Two errors, of the run against its forecast and of these pairs against all like them, are independent.
        band = self.forecast.bands[name].accuracy[-1]
        drawn = proportion(round(band.value * len(rows)), len(rows))
        wider = float(norm.ppf(0.5 + LEVEL / 2) / norm.ppf(0.5 + COVERAGE / 2))
        down, up = (wider * side for side in (band.value - band.low, band.high - band.value))
        low = band.value - math.hypot(down, max(drawn.value - drawn.low, 0.0))
        high = band.value + math.hypot(up, max(drawn.high - drawn.value, 0.0))
        return Expected(band.value, max(low, 0.0), min(high, 1.0), len(rows), band.value - down > CHANCE)

    @cached_property
    def responses(self) -> dict[str, list[int]]:
        """Rows of the held-out pairs by their chosen response, where there are a few of these; else nothing."""
        return response_rows(self.forecast.heldout.pairs)

    def accuracy(self, rows: Sequence[int] | None = None) -> list[float]:
        """The share of held-out pairs (of those at `rows`) with a positive margin at every recorded step."""
        if rows is None and isinstance(self.forecast, TrainedForecast):
            return [each.value for each in self.forecast.bands[""].accuracy]
        margins = self.forecast.heldout.margins
        return _means((margins if rows is None else margins[:, list(rows)]) > 0)

    @property
    def margins(self) -> tuple[list[float] | None, list[float]]:
        """Mean training margin at every recorded step, None where no training pair is known, and held-out margin."""
        train = self.forecast.train
        return (_means(train.margins) if len(train.pairs) else None), _means(self.forecast.heldout.margins)

    @property
    def train_accuracy(self) -> float | None:
        """Of training pairs at the end; None where none is known."""
        train = self.forecast.train
        return _means(train.margins > 0)[-1] if len(train.pairs) else None

    @cached_property
    def settled(self) -> Estimate:
        """The recorded step from which held-out accuracy gains no more than a point or a single pair."""
        if isinstance(self.forecast, TrainedForecast):
            return stops_rising(self.forecast)
        curve = self.accuracy()
        near = max(NEAR, 1 / len(self.forecast.heldout.pairs)) + 1e-9
        step = next(step for index, step in enumerate(self.steps) if curve[index] >= max(curve[index:]) - near)
        return Estimate(step, step, step)

    @property
    def rising(self) -> bool:
        """Whether held-out accuracy gains more than that in the last recorded stretch, likelier than not."""
        if len(self.steps) < 2:
            return False
        if isinstance(self.forecast, TrainedForecast):
            return still_rising(self.forecast) >= 0.5
        return self.settled.value == self.steps[-1]

    @property
    def falling(self) -> float | None:
        """Share of held-out pairs whose chosen response ends less likely than it was; None where unknown."""
        return displacement(self.forecast)["heldout"]

    @property
    def diverged(self) -> bool:
        return not bool(self.forecast.heldout.margins[-1].isfinite().all())


def _means(values: Tensor) -> list[float]:
    return [float(value) for value in values.double().mean(dim=1)]
