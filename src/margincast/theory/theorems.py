"""What do Theorems 4.1, 4.2, A.1 and A.2 promise for given K, Q, d, l_b, v, and does the promise say anything?

Readings of the same guarantee, each a `Guarantee`:

printed           the main text's Theorems 4.1 and 4.2, letter by letter, with its unnamed constant c set to 1
printed_appendix  Theorems A.1 and A.2, letter by letter, with epsilon = 1/(16 v (Z + 2)) and c = 1
derived           what the appendix's own steps give once its slips are mended (docs/theory/errata.md), proved c
explicit          the same argument with exact tails and nothing rounded away (`theory.explicit`)
"""

from __future__ import annotations

import math

import numpy as np

from margincast.records import Check
from margincast.theory.constants import BERNSTEIN_C
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.explicit import explicit
from margincast.theory.guarantee import Guarantee, tau_1, unit_rate

FORMS = ("printed", "printed_appendix", "derived", "explicit")


def theorem_epsilon(distribution: PreferenceDistribution) -> float:
    """epsilon = 1/(16 v (Z + 2)), the largest the theorems allow."""
    return 1.0 / (16.0 * distribution.noise * (distribution.Z + 2))


def _shared_conditions(distribution: PreferenceDistribution) -> tuple[Check, ...]:
    return (
        *distribution.assumptions(),
        Check("Z <= 1/(4 l_b^2)", float(distribution.Z), _quarter_over_square(distribution.shared_norm)),
        Check("d <= 5 Q", float(distribution.d), 5.0 * distribution.Q),
        Check("v <= 1/(4 sqrt Q)", distribution.noise, largest_noise(distribution.Q)),
    )


def _quarter_over_square(shared_norm: float) -> float:
    square = shared_norm**2
    return 0.25 / square if square > 0.0 else math.inf


def largest_noise(Q: int) -> float:
    """1/(4 sqrt Q), the widest clusters the theorems allow."""
    return 1.0 / (4.0 * math.sqrt(Q))


def printed(distribution: PreferenceDistribution, beta: float, tau: float = 1.0, c: float = 1.0) -> Guarantee:
    """Theorems 4.1 and 4.2 as printed; `c` stands for their "some constant c > 0"."""
    K, Q = distribution.K, float(distribution.Q)
    exponent = min(c * math.sqrt(Q) / 5.0, Q**0.75 / 256.0)
    rate = unit_rate(distribution, beta, tau)
    return Guarantee(
        form="printed",
        conditions=(
            *_shared_conditions(distribution),
            Check("Z <= Q^(1/4) - 2", float(distribution.Z), Q**0.25 - 2.0),
            Check("Q >= 40", Q, 40.0, ">=", "Theorem 4.2 only; the line above already forces Q >= 81"),
        ),
        lower_rate=Q / 4.0 * rate,
        upper_rate=10.0 * Q * rate,
        tau_1=tau_1(distribution, beta, tau),
        log_failure=math.log(8.0 * K) + 2.25 * math.log(Q) - exponent,
        log_risk=math.log(2.0 * K) + 2.0 * math.log(Q) - Q**0.25 / 6.0,  # Eq. 11
    )


def _log_lemma_failure(distribution: PreferenceDistribution, c: float) -> float:
    """log of (8Z+4) K Q^2 [exp(-eps^2/16) + exp(-(c eps/v) min(1, eps/(d v)))], Lemma A.1."""
    epsilon, v = theorem_epsilon(distribution), distribution.noise
    count = math.log((8.0 * distribution.Z + 4.0) * distribution.K) + 2.0 * math.log(distribution.Q)
    bernstein = c * epsilon / v * min(1.0, epsilon / (distribution.d * v))
    return float(count + np.logaddexp(-(epsilon**2) / 16.0, -bernstein))


def _log_new_point_risk(distribution: PreferenceDistribution, slack: float) -> float:
    """log of 2 K Q^2 exp(-eps^2 / (2 (2 + d v^2 + slack))) (Eq. 45)."""
    spread = 2.0 + distribution.d * distribution.noise**2 + slack
    exponent = theorem_epsilon(distribution) ** 2 / (2.0 * spread)
    return math.log(2.0 * distribution.K) + 2.0 * math.log(distribution.Q) - exponent


def printed_appendix(distribution: PreferenceDistribution, beta: float, tau: float = 1.0, c: float = 1.0) -> Guarantee:
    """Theorems A.1 and A.2 as printed, at their largest epsilon, each statement to the letter."""
    Q, v = float(distribution.Q), distribution.noise
    rate = unit_rate(distribution, beta, tau)
    return Guarantee(
        form="printed_appendix",
        conditions=(
            *_shared_conditions(distribution),
            Check("d >= 5 Q/(2 v^2)", float(distribution.d), 2.5 * Q / v**2, ">=", "Theorem A.2 as printed"),
        ),
        lower_rate=Q / 4.0 * rate,
        upper_rate=2.0 * distribution.d * v**2 * rate,
        tau_1=tau_1(distribution, beta, tau),
        log_failure=_log_lemma_failure(distribution, c),
        log_risk=_log_new_point_risk(distribution, theorem_epsilon(distribution) * v),
    )


def derived(distribution: PreferenceDistribution, beta: float, tau: float = 1.0) -> Guarantee:
    """What the appendix proves once mended, with |S_k| counted from the data and the proved c.

    r^U is (5Q + 2 d v^2) beta^2 t/(2 N tau) (Eq. 42) whenever |S_k| <= Z; where more concepts interact the 5Q/2 grows
    with them. The lower rate Q/4 survives |S_k| up to 2(Z - 1), the most that Z allows.
    """
    Q, v, S = float(distribution.Q), distribution.noise, distribution.S
    epsilon = theorem_epsilon(distribution)
    deviation = (2 * S + 4) * epsilon * v + S * distribution.shared_norm**2  # of Lemma A.2, in units of 2 beta^2 Q/N
    rate = unit_rate(distribution, beta, tau)
    return Guarantee(
        form="derived",
        conditions=(
            *_shared_conditions(distribution),
            Check("(2|S|+4) eps v + |S| l_b^2 <= 3/4", deviation, 0.75, note="what the lower envelope needs"),
        ),
        lower_rate=Q / 4.0 * rate,
        upper_rate=(2.0 * Q + Q * max(0.5, deviation) + distribution.d * v**2) * rate,
        tau_1=tau_1(distribution, beta, tau),
        log_failure=_log_lemma_failure(distribution, BERNSTEIN_C),
        # |x_j|^2 <= 1 + l_b^2 + d v^2 + 2 eps v: Lemma A.1 bounds 2 mu^T alpha + |alpha|^2, not |alpha|^2 alone.
        log_risk=_log_new_point_risk(distribution, 2.0 * epsilon * v),
    )


def guarantees(distribution: PreferenceDistribution, beta: float, tau: float = 1.0) -> dict[str, Guarantee]:
    """All four readings, by name, in the order of `FORMS`."""
    readings = (
        printed(distribution, beta, tau),
        printed_appendix(distribution, beta, tau),
        derived(distribution, beta, tau),
        explicit(distribution, beta, tau),
    )
    return {reading.form: reading for reading in readings}
