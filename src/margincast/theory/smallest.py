"""From which Q on does each reading of the theorems say anything at all?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.explicit import explicit
from margincast.theory.guarantee import Guarantee
from margincast.theory.theorems import derived, largest_noise, printed

_RATIO = 1.02  # spacing of the search grid in Q; the crossing found is then refined to the integer
_LARGEST_Q = 10**18


@dataclass(frozen=True)
class SmallestQ:
    """Smallest Q with a positive probability, and with a risk bound below 1. None: no Q up to 1e18, or none allowed."""

    form: str
    training: int | None
    risk: int | None


def smallest_where(says_something: Callable[[int], bool], largest: int = _LARGEST_Q) -> int | None:
    """The first Q <= largest at which the predicate holds: first on a grid of ratio 1.02, then to the integer.

    Exact when the predicate changes once from false to true, as it does for bounds that decay with Q.
    """
    void, candidate = 0, 1
    while candidate <= largest:
        if says_something(candidate):
            while candidate - void > 1:
                middle = (void + candidate) // 2
                void, candidate = (void, middle) if says_something(middle) else (middle, candidate)
            return candidate
        void, candidate = candidate, max(candidate + 1, int(candidate * _RATIO))
    return None


def smallest_informative_Q(distribution: PreferenceDistribution, noise: float | None = None) -> tuple[SmallestQ, ...]:
    """For the K, l_b and responses of `distribution`: the smallest Q at which each reading says something.

    noise: v, held fixed while Q varies, with the distribution's own d; None takes the widest clusters and the largest
    d the theorems allow at each Q, v = 1/(4 sqrt Q) and d = 5Q, as their main-text version does.
    """

    def at(Q: int) -> PreferenceDistribution:
        if noise is None:
            return replace(distribution, Q=Q, noise=largest_noise(Q), d=max(5 * Q, distribution.K + 1), axes=None)
        return replace(distribution, Q=Q, noise=noise)

    covered = all(check.holds for check in distribution.assumptions())

    def search(reading: Callable[[PreferenceDistribution, float], Guarantee]) -> SmallestQ:
        form = reading(at(distribution.Q), 1.0).form
        if not covered:  # no Q mends a repeated response pair
            return SmallestQ(form, training=None, risk=None)
        return SmallestQ(
            form,
            training=smallest_where(lambda Q: not reading(at(Q), 1.0).failure_vacuous),
            risk=smallest_where(lambda Q: not reading(at(Q), 1.0).risk_vacuous),
        )

    return search(printed), search(derived), search(explicit)
