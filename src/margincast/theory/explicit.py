"""What do the theorems promise once every probability is computed? (docs/theory/constants.md, steps 3 and 4)

The argument is that of Theorems A.1 and A.2: while margins lie in [0, log 3], slopes -f' lie in [1/4, 1/2]. Tails are
exact instead of Bernstein's with an open constant, the slack is the largest the argument carries instead of a fixed
one, and entries of C that hinder are not charged at slopes they cannot have.
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr

from margincast.errors import InputError
from margincast.records import Check
from margincast.theory.constants import log_concentration_failure
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.guarantee import Guarantee, tau_1, unit_rate


def _least(entry: float) -> float:
    """The least an entry of C can add to a velocity while every slope -f' is in [1/4, 1/2]."""
    return entry / 4.0 if entry >= 0.0 else entry / 2.0


def _most(entry: float) -> float:
    """The most an entry of C can add to a velocity while every slope -f' is in [1/4, 1/2]."""
    return entry / 2.0 if entry >= 0.0 else entry / 4.0


def _explicit_rates(distribution: PreferenceDistribution, slack: float) -> tuple[float, float, float]:
    """Velocity of a training margin, least and most, and least of a new cluster mean, in units of beta^2 Q/(N tau)."""
    S, shared = distribution.S, distribution.shared_norm**2
    spread = distribution.d * distribution.noise**2 / distribution.Q
    off = 2.0 * slack
    # The l_b^2 of an interacting concept's two clusters comes with opposite signs, and slopes differ by 1/4 at most.
    cross = S * (shared / 4.0 + off)
    mean = 2.0 * (_least(1.0 + shared - off) + _least(1.0 - shared - off)) - cross
    # A point also meets itself: its own entry is 2 d v^2 larger than that of another point of its cluster.
    lower = mean + 2.0 * spread / 4.0
    upper = 2.0 * (_most(1.0 + shared + off) + _most(1.0 - shared + off)) + cross + 2.0 * spread / 2.0
    return lower, upper, mean


def largest_slack(distribution: PreferenceDistribution) -> float:
    """The largest slack at which the explicit argument still gives r^L = Q beta^2 t/(4 N tau) and a log 3 ceiling.

    0 when no slack does: the shared component or the interaction is too strong.
    """

    def keeps(slack: float) -> bool:
        _, upper, mean = _explicit_rates(distribution, slack)
        return mean >= 0.25 and upper <= 10.0

    low, high = 0.0, 1.0  # at slack 1 the mean term is negative whatever the other parameters
    if not keeps(low):
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def explicit(
    distribution: PreferenceDistribution, beta: float, tau: float = 1.0, slack: float | None = None
) -> Guarantee:
    """The guarantee with exact tails: every number is computed, no constant is left open (docs/theory/constants.md).

    slack: how far from its mean, in halves, an inner product may be (the paper's epsilon * v). The default is
    `largest_slack`, the smallest probability of failure; a smaller slack buys tighter envelopes and risk with it.
    It asks neither d <= 5Q nor v <= 1/(4 sqrt Q): wide clusters show in the numbers instead.
    """
    chosen = largest_slack(distribution) if slack is None else slack
    if chosen < 0.0:
        raise InputError(f"slack must be >= 0, got {chosen}")
    lower, upper, mean = _explicit_rates(distribution, chosen)
    Q, v, shared = float(distribution.Q), distribution.noise, distribution.shared_norm**2
    # |delta^T dW| <= (beta tau_1/(N tau)) Q (1 + |S|/2) sqrt(2 P + 2 d v^2/Q): constants.md, step 4.
    P = (1.0 + shared + 2.0 * chosen) + max(0.0, 1.0 - shared + 2.0 * chosen)
    width = v * (1.0 + distribution.S / 2.0) * math.sqrt(2.0 * P + 2.0 * distribution.d * v**2 / Q)
    rate = unit_rate(distribution, beta, tau) * Q
    return Guarantee(
        form="explicit",
        conditions=(
            *distribution.assumptions(),
            Check("lower rate of a cluster mean >= 1/4", mean, 0.25, ">=", "in units of Q beta^2/(N tau)"),
            Check("upper rate <= 10", upper, 10.0, note="in units of Q beta^2/(N tau)"),
        ),
        lower_rate=lower * rate,
        upper_rate=upper * rate,
        tau_1=tau_1(distribution, beta, tau),
        log_failure=log_concentration_failure(distribution, chosen),
        log_risk=float(log_ndtr(-mean / width)),
    )
