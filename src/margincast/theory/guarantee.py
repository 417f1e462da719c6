"""What is a guarantee about a run: conditions, envelopes, a probability, a risk?

Times are in units of learning_rate * steps when tau = 1. Probabilities and risks are kept as natural logarithms; a
value above 0 is a bound above 1, which says nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from margincast.errors import InputError
from margincast.records import Check
from margincast.theory.distribution import PreferenceDistribution

_SMALLEST = 1e-12  # of beta and tau; 1/_SMALLEST is the largest


@dataclass(frozen=True)
class Guarantee:
    """One reading of the theorems for one distribution.

    conditions: the hypotheses, each with both sides
    lower_rate, upper_rate: r^L(t) = lower_rate * t and r^U(t) = upper_rate * t bound the training margins, t <= tau_1
    log_failure: natural log of the bound on the probability that the training draw breaks the promise
    log_risk: natural log of the bound on the population risk at tau_1, when the promise is kept
    """

    form: str
    conditions: tuple[Check, ...]
    lower_rate: float
    upper_rate: float
    tau_1: float
    log_failure: float
    log_risk: float

    @property
    def conditions_hold(self) -> bool:
        return all(check.holds for check in self.conditions)

    @property
    def failure_vacuous(self) -> bool:
        """Whether the training guarantee says nothing: a hypothesis fails or its probability is not positive."""
        return not self.conditions_hold or self.log_failure >= 0.0

    @property
    def risk_vacuous(self) -> bool:
        """Whether the risk bound says nothing: it needs the training guarantee, and a value below 1."""
        return self.failure_vacuous or self.log_risk >= 0.0

    def envelope(self, time: float) -> tuple[float, float]:
        """(r^L, r^U) at a time in [0, tau_1]. Raises `InputError` for another time."""
        if not 0.0 <= time <= self.tau_1 * (1.0 + 1e-12):
            raise InputError(f"the envelopes hold for 0 <= t <= tau_1 = {self.tau_1:g}, got {time:g}")
        return self.lower_rate * time, self.upper_rate * time


def tau_1(distribution: PreferenceDistribution, beta: float, tau: float = 1.0) -> float:
    """tau_1 = N tau log 3 / (10 Q beta^2) (Eq. 29): before it no training margin exceeds log 3.

    Raises `InputError` unless beta and tau are positive and of a size float64 can square.
    """
    for name, value in (("beta", beta), ("tau", tau)):
        if not _SMALLEST <= value <= 1.0 / _SMALLEST:
            raise InputError(f"{name} must lie between {_SMALLEST:g} and {1.0 / _SMALLEST:g}, got {value}")
    return distribution.N * tau * math.log(3.0) / (10.0 * distribution.Q * beta**2)


def unit_rate(distribution: PreferenceDistribution, beta: float, tau: float) -> float:
    """beta^2/(N tau): rates below are multiples of it."""
    return beta**2 / (distribution.N * tau)
