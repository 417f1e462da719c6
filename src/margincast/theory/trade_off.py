"""How tight do the explicit envelopes and risk become when a given probability of failure is accepted?"""

from __future__ import annotations

import math

from margincast.errors import InputError
from margincast.theory.constants import log_concentration_failure
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.explicit import explicit, largest_slack
from margincast.theory.guarantee import Guarantee


def slack_for_failure(distribution: PreferenceDistribution, failure: float) -> float | None:
    """The smallest slack whose event fails with probability at most `failure`; None when even the largest fails more.

    Raises `InputError` unless 0 < failure < 1.
    """
    if not 0.0 < failure < 1.0:
        raise InputError(f"an accepted probability of failure lies strictly between 0 and 1, got {failure}")
    low, high = 0.0, largest_slack(distribution)
    if log_concentration_failure(distribution, high) > math.log(failure):
        return None
    for _ in range(60):  # the failure bound falls as the slack grows
        middle = (low + high) / 2.0
        if log_concentration_failure(distribution, middle) > math.log(failure):
            low = middle
        else:
            high = middle
    return high


def explicit_at(distribution: PreferenceDistribution, beta: float, tau: float, failure: float) -> Guarantee | None:
    """The explicit guarantee that fails with probability at most `failure`; None when there is none."""
    slack = slack_for_failure(distribution, failure)
    return None if slack is None else explicit(distribution, beta, tau, slack)
