"""Random problems on which every promise of the theory is checked against the integrated flow.

`python tests/theory/draws.py 1000`, where margincast is installed, checks that many draws of each kind
and prints a count.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from dataclasses import dataclass

import torch

from margincast.frozen.flow.states import gradient_flow
from margincast.theory.distribution import PreferenceDistribution, preference_distribution
from margincast.theory.envelopes import Bracket, first_order, propagate
from margincast.theory.explicit import explicit
from margincast.theory.lemmas import Relation, measure_deviations, relations
from margincast.theory.theorems import derived, largest_noise, theorem_epsilon
from margincast.theory.tube import flow_tube

# gradient_flow keeps its local error below 1e-8 of the state; the loss is convex, so the errors only add up.
FLOW_ERROR = 1e-6


@dataclass(frozen=True)
class Problem:
    distribution: PreferenceDistribution
    beta: float
    tau: float
    seed: int


@dataclass(frozen=True)
class Verdict:
    """What one draw showed; every entry of `broken` names a promise the true trajectory broke."""

    event_held: bool
    left_corrected_envelope: bool
    broken: tuple[str, ...]


def inside_conditions(seed: int) -> Problem:
    """A problem that meets every condition of Theorem A.1, with Q, K and d small enough to be quick."""
    rng = random.Random(seed)
    K, Q = rng.randint(1, 5), rng.choice([1, 2, 4, 8, 16, 24])
    kind = rng.choice(["distinct", "chain"]) if K > 1 else "distinct"
    Z = rng.randint(2, 4)
    low, high = K + 1, max(K + 1, min(5 * Q, 60))  # d <= 5Q, and room for K concepts and b
    Q = max(Q, math.ceil(low / 5))
    d = rng.randint(low, high)
    distribution = preference_distribution(K, Q, d, 0.0, 1.0, kind, Z)
    shared_norm = rng.uniform(0.0, 1.0) / (2.0 * math.sqrt(distribution.Z))
    # Lemma A.1's event needs clusters far narrower than the theorem's 1/(4 sqrt Q); wide ones are drawn too.
    noise = largest_noise(Q) * 10.0 ** rng.uniform(-2.0, 0.0)
    distribution = preference_distribution(K, Q, d, shared_norm, noise, kind, Z)
    return Problem(distribution, 10.0 ** rng.uniform(-2.0, 1.0), 10.0 ** rng.uniform(-1.0, 1.0), seed)


def outside_conditions(seed: int) -> Problem:
    """A problem without regard to any condition: wide clusters, a strong shared component, shared response pairs."""
    rng = random.Random(seed)
    K, Q = rng.randint(1, 5), rng.choice([1, 2, 4, 8, 16])
    kind = rng.choice(["distinct", "chain", "shared"])
    d = rng.randint(K + 1, 60)
    noise, shared_norm = 10.0 ** rng.uniform(-2.0, 0.5), 10.0 ** rng.uniform(-1.0, 1.0)
    distribution = preference_distribution(K, Q, d, shared_norm, noise, kind, rng.randint(2, 4))
    return Problem(distribution, 10.0 ** rng.uniform(-2.0, 0.5), 10.0 ** rng.uniform(-1.0, 1.0), seed)


def realised_slack(distribution: PreferenceDistribution, draw_features: torch.Tensor, clusters: torch.Tensor) -> float:
    """The smallest slack at which this draw lies in the event of the explicit theorem."""
    means = distribution.means
    table = relations(distribution, clusters)
    expected = means[clusters] @ means[clusters].T
    expected.diagonal().add_(distribution.d * distribution.noise**2)
    relevant = table != int(Relation.UNRELATED_CONCEPT)
    worst = float((draw_features @ draw_features.T - expected)[relevant].abs().max())
    towards = (draw_features - means[clusters]) @ means.T
    reads = (relations(distribution, torch.arange(2 * distribution.K)) != int(Relation.UNRELATED_CONCEPT))[clusters]
    return max(worst, float(towards[reads].abs().max())) / 2.0


def violations(name: str, bracket: Bracket, margins: torch.Tensor) -> list[str]:
    room = FLOW_ERROR * (1.0 + margins.abs())
    low, high = bool((margins < bracket.lower - room).any()), bool((margins > bracket.upper + room).any())
    return [f"{name} {side}" for side, bad in (("lower", low), ("upper", high)) if bad]


def check(problem: Problem, inside: bool, horizon: float = 1.0, points: int = 9) -> Verdict:
    """Integrate one draw to `horizon` times tau_1 and hold every promise against it."""
    distribution, beta, tau = problem.distribution, problem.beta, problem.tau
    training = distribution.training_set(beta, problem.seed)
    fresh = distribution.fresh_points(20, beta, problem.seed + 1)
    guarantee = derived(distribution, beta, tau)
    times = [guarantee.tau_1 * horizon * k / (points - 1) for k in range(points)]
    states = gradient_flow(training.space, times, tau=tau).states
    margins = torch.stack([training.space.margins(state) for state in states])
    new = torch.stack([fresh.space.margins(state) for state in states])
    clock = torch.tensor(times, dtype=torch.float64)

    tube = flow_tube(training.space, times, tau)
    envelope = propagate(training.space, fresh.space, times, tau)
    broken = violations("tube", tube.bracket(training.space), margins)
    broken += violations("tube held-out", tube.bracket(fresh.space), new)
    broken += violations("propagated", envelope.train, margins)
    broken += violations("propagated held-out", envelope.heldout, new)
    slopes = first_order(training.space, fresh.space, tau)
    early = clock <= slopes.horizon
    line = clock[early, None]
    broken += violations("first order", Bracket(line, line * slopes.lower, line * slopes.upper), margins[early])
    bracket = Bracket(line, line * slopes.heldout_lower, line * slopes.heldout_upper)
    broken += violations("first order held-out", bracket, new[early])

    event, left = False, False
    if inside:
        event = all(line.holds for line in measure_deviations(distribution, training, theorem_epsilon(distribution)))
        corrected = Bracket(clock, *(clock[:, None] * rate for rate in (guarantee.lower_rate, guarantee.upper_rate)))
        left = bool(violations("corrected", corrected, margins))
        if event and left:
            broken.append("corrected envelope on the event of Lemma A.1")
        slack = realised_slack(distribution, training.space.features, training.clusters)
        own = explicit(distribution, beta, tau, slack * (1.0 + 1e-9))
        if own.conditions_hold:
            rates = Bracket(clock, clock[:, None] * own.lower_rate, clock[:, None] * own.upper_rate)
            broken += violations("explicit envelope on its event", rates, margins)
    return Verdict(event, left, tuple(broken))


def main(count: int) -> int:
    torch.set_num_threads(1)
    broken: Counter[str] = Counter()
    held = left = 0
    for seed in range(count):
        verdict = check(inside_conditions(seed), inside=True)
        held, left = held + verdict.event_held, left + verdict.left_corrected_envelope
        broken.update(verdict.broken)
    print(
        f"inside the conditions: {count} draws, Lemma A.1's event held on {held}, left the corrected envelope: {left}"
    )
    for seed in range(count):
        broken.update(check(outside_conditions(seed), inside=False, horizon=5.0).broken)
    print(f"outside the conditions, to 5 tau_1: {count} draws")
    print(f"broken promises: {dict(broken) if broken else 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
