"""What do the theorems promise for one preference distribution, and from where on do they say anything?

The readings themselves are `theory.theorems`; this puts them beside what an accepted probability of failure buys and
the smallest Q at which each says something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from margincast.results import Result
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.guarantee import Guarantee
from margincast.theory.smallest import SmallestQ, smallest_informative_Q
from margincast.theory.theorems import guarantees, theorem_epsilon
from margincast.theory.trade_off import explicit_at

ACCEPTED_FAILURES = (0.05, 1e-3, 1e-6)


@dataclass(frozen=True)
class TradeOff:
    """The explicit guarantee that fails with probability at most `failure`; None when there is none."""

    failure: float
    guarantee: Guarantee | None


@dataclass(frozen=True)
class Bounds(Result):
    """Theorems 4.1 and 4.2 for `distribution`, beta and tau. A bound that says nothing is given all the same.

    readings: by form, in the order of `theorems.FORMS`;  trade_off: of the explicit form, by `ACCEPTED_FAILURES`
    smallest_at_widest_noise: the smallest Q by form, v and d growing with Q as the theorems allow
    smallest_at_this_noise: at the v and d of `distribution`
    """

    presenter: ClassVar[str] = "bounds"

    distribution: PreferenceDistribution
    beta: float
    tau: float
    readings: dict[str, Guarantee]
    trade_off: tuple[TradeOff, ...]
    smallest_at_widest_noise: tuple[SmallestQ, ...]
    smallest_at_this_noise: tuple[SmallestQ, ...]

    @property
    def tau_1(self) -> float:
        """The time up to which the envelopes hold, in units of learning_rate * steps when tau is 1."""
        return self.readings["derived"].tau_1

    @property
    def epsilon(self) -> float:
        """The largest that the theorems allow."""
        return theorem_epsilon(self.distribution)


def bounds(distribution: PreferenceDistribution, beta: float, tau: float = 1.0) -> Bounds:
    """Everything that the theorems say of `distribution`, which `preference_distribution` makes.

    Raises `InputError` unless beta and tau are positive and of a size float64 can square.
    """
    return Bounds(
        distribution=distribution,
        beta=beta,
        tau=tau,
        readings=guarantees(distribution, beta, tau),
        trade_off=tuple(
            TradeOff(failure, explicit_at(distribution, beta, tau, failure)) for failure in ACCEPTED_FAILURES
        ),
        smallest_at_widest_noise=smallest_informative_Q(distribution),
        smallest_at_this_noise=smallest_informative_Q(distribution, distribution.noise),
    )
