"""How fast do margins grow where the theory's distribution is the truth? What the runs' dependence on K is set beside.

r(t)/t at t = tau_1 under gradient flow, mean over training pairs, in units of beta^2/tau; tau_1 is proportional to K.
"""

from __future__ import annotations

from margincast.frozen.flow.states import gradient_flow
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.guarantee import tau_1


def simulated_growth(distribution: PreferenceDistribution, beta: float, seed: int) -> float:
    """For one training set of `distribution`, drawn with `seed`."""
    end = tau_1(distribution, beta, 1.0)
    space = distribution.training_set(beta, seed).space
    (state,) = gradient_flow(space, [end]).states
    return float(space.margins(state).mean()) / end / beta**2
