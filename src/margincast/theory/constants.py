"""With what probability, as a number, do the inner products of a draw stay near their means? (Lemma A.1)

The paper's Bernstein step has "some constant c". The moment generating functions it rests on are known exactly, so the
constant can be replaced: by a proved value of c (`BERNSTEIN_C`), or by the Chernoff bound of the exact functions, one
per kind of pair, without first splitting the inner product. Derivations: docs/theory/constants.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr

from margincast.theory.distribution import PreferenceDistribution

# The largest c for which exp(-(c x) min(1, x/d)) bounds the tails, at distance x, both of a sum of d products of
# independent standard normals and of a centred chi-square with d degrees of freedom. docs/theory/constants.md, step 1.
BERNSTEIN_C = (1.0 - math.log(2.0)) / 2.0


def log_mgf_inner_product(kappa: float, sum_sq: float, difference_sq: float, d: int, noise: float) -> float:
    """log E exp(kappa (x^T y - m^T n) / v^2) for independent x ~ N(m, v^2 I), y ~ N(n, v^2 I), |kappa| < 1.

    sum_sq = |m + n|^2, difference_sq = |m - n|^2; exact.
    """
    linear = sum_sq / (1.0 - kappa) + difference_sq / (1.0 + kappa)
    return -0.5 * d * math.log1p(-(kappa**2)) + (kappa / noise) ** 2 / 4.0 * linear


def log_mgf_square(kappa: float, norm_sq: float, d: int, noise: float) -> float:
    """log E exp(kappa (|x|^2 - |m|^2 - d v^2) / v^2) for x ~ N(m, v^2 I), norm_sq = |m|^2, kappa < 1/2; exact."""
    return -0.5 * d * math.log1p(-2.0 * kappa) - kappa * d + 2.0 * (kappa / noise) ** 2 * norm_sq / (1.0 - 2.0 * kappa)


def log_chernoff(log_mgf: Callable[[float], float], distance: float, limit: float) -> float:
    """min over 0 < kappa < limit of log_mgf(kappa) - kappa * distance, at most 0.

    Every kappa gives a valid bound, so the accuracy of the search costs tightness, never truth.
    """
    # The optimum can sit many orders of magnitude below `limit`, so the search runs over log kappa.
    result = minimize_scalar(
        lambda u: log_mgf(math.exp(u)) - math.exp(u) * distance,
        bounds=(math.log(limit) - 80.0, math.log(limit) - 1e-9),
        method="bounded",
        options={"xatol": 1e-10, "maxiter": 500},
    )
    return min(0.0, float(result.fun))


def log_tail_inner_product(distance: float, sum_sq: float, difference_sq: float, d: int, noise: float) -> float:
    """log of a bound on P(|x^T y - m^T n| > distance), x and y independent as in `log_mgf_inner_product`."""
    scaled = distance / noise**2
    above = log_chernoff(lambda k: log_mgf_inner_product(k, sum_sq, difference_sq, d, noise), scaled, 1.0)
    # The lower tail is the upper tail of x^T(-y), which exchanges the sum and the difference of the means.
    below = log_chernoff(lambda k: log_mgf_inner_product(k, difference_sq, sum_sq, d, noise), scaled, 1.0)
    return float(np.logaddexp(above, below))


def log_tail_square(distance: float, norm_sq: float, d: int, noise: float) -> float:
    """log of a bound on P(| |x|^2 - |m|^2 - d v^2 | > distance)."""
    scaled = distance / noise**2
    above = log_chernoff(lambda k: log_mgf_square(k, norm_sq, d, noise), scaled, 0.5)
    # kappa < 0 has no limit; beyond `scaled` the bound -kappa * scaled / 2 alone is stronger than needed.
    below = log_chernoff(lambda k: log_mgf_square(-k, norm_sq, d, noise), scaled, 10.0 * (1.0 + scaled))
    return float(np.logaddexp(above, below))


def log_tail_normal(distance: float, sd: float) -> float:
    """log P(|X| > distance), X ~ N(0, sd^2); exact."""
    return math.log(2.0) + float(log_ndtr(-distance / sd))


@dataclass(frozen=True)
class UnionTerm:
    """`count` events of one kind, each of probability at most exp(log_tail)."""

    kind: str
    count: float
    log_tail: float

    @property
    def log_total(self) -> float:
        return -math.inf if self.count == 0 else math.log(self.count) + self.log_tail


def concentration_terms(distribution: PreferenceDistribution, slack: float) -> tuple[UnionTerm, ...]:
    """The union bound behind the explicit theorem, term by term.

    The event: every inner product g_i^T g_j that C reads (same concept, or concepts that share a token) is within
    2 * slack of its mean, and so is every mu_c^T g_i for the means mu_c of those clusters. `slack` is the paper's
    epsilon * v, so this contains the event of Lemma A.1 at epsilon = slack / v.
    """
    K, Q, d, v = distribution.K, float(distribution.Q), distribution.d, distribution.noise
    shared = distribution.shared_norm**2
    links = sum(len(members) for members in distribution.interacting)  # ordered pairs of interacting concepts
    distance = 2.0 * slack

    def inner(sum_sq: float, difference_sq: float) -> float:
        return log_tail_inner_product(distance, sum_sq, difference_sq, d, v)

    return (
        UnionTerm("a point with itself", 2 * K * Q, log_tail_square(distance, 1.0 + shared, d, v)),
        UnionTerm("two points of a cluster", K * Q * (Q - 1), inner(4.0 * (1.0 + shared), 0.0)),
        UnionTerm("points of opposite clusters", K * Q**2, inner(4.0 * shared, 4.0)),
        UnionTerm("points of interacting concepts", 2.0 * links * Q**2, inner(4.0 * shared + 2.0, 2.0)),
        UnionTerm(
            "a point with a cluster mean", 4.0 * (K + links) * Q, log_tail_normal(distance, v * math.sqrt(1.0 + shared))
        ),
    )


def log_concentration_failure(distribution: PreferenceDistribution, slack: float) -> float:
    """log of a bound on the probability that a draw of the training set leaves the event of `concentration_terms`."""
    if slack <= 0.0:
        return math.inf
    return float(np.logaddexp.reduce([term.log_total for term in concentration_terms(distribution, slack)]))
