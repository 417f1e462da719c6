"""Is a rule better than choosing at random? Both are judged on the same held-out pairs, and choosing has noise of its
own.

With d_j the difference of a rule and the mean of S random parts on held-out pair j, its mean has the standard error

    e = sqrt(e_pairs^2 + s^2 (1 + 1/S) (t_{S-1} / z)^2)

e_pairs by a bootstrap over held-out pairs, the same resamples for all rules; s the standard deviation between random
parts, as another part by the same rule would differ too; t / z what few parts leave unsure of s. The interval is
mean(d) +- c e, c the 95% quantile of the largest |deviation| / e_pairs over the rules: the best of many rules is then
no better for having been looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm, t
from torch import Tensor, tensor

from margincast.intervals import LEVEL, RESAMPLES, Estimate, Values
from margincast.records import PairSet

LEAST = float(norm.ppf(0.5 + LEVEL / 2))


def weights(pairs: int, seed: int) -> Values:
    """(resamples, pairs): how much a pair counts in each resample; rows sum to 1."""
    generator = np.random.default_rng(seed)
    drawn: Values = generator.multinomial(pairs, np.full(pairs, 1.0 / pairs), size=RESAMPLES) / pairs
    return drawn


def estimate(values: Values, resamples: Values) -> Estimate:
    """The mean of (pairs,) values; its interval is (nan, nan) for a single pair."""
    if len(values) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"))
    low, high = np.quantile(resamples @ values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def choosing_noise(parts: Values) -> float:
    """What another random part would differ by from the mean of these, (S, pairs): s sqrt(1 + 1/S) t / z."""
    count = len(parts)
    if count < 2:
        return 0.0
    spread = float(parts.mean(axis=1).std(ddof=1))
    wider: float = (1 + 1 / count) ** 0.5 * float(t.ppf(0.5 + LEVEL / 2, count - 1)) / LEAST
    return spread * wider


def differences(values: Values, beside: Values, noise: float, resamples: Values) -> list[Estimate]:
    """Of each of (rules, pairs) values from `beside`, (pairs,) or (rules, pairs): simultaneous 95% intervals."""
    gaps = values - beside
    means = gaps.mean(axis=1)
    if gaps.shape[1] < 2 or not len(gaps):
        return [Estimate(float(mean), float("nan"), float("nan")) for mean in means]
    away = resamples @ gaps.T - means
    error = away.std(axis=0)
    moved = error > 0
    largest = LEAST
    if moved.any():
        largest = max(LEAST, float(np.quantile(np.abs(away[:, moved] / error[moved]).max(axis=1), LEVEL)))
    half = largest * np.sqrt(error**2 + noise**2)
    return [Estimate(float(mean), float(mean - h), float(mean + h)) for mean, h in zip(means, half, strict=True)]


def best_of(names: Sequence[str], accuracy: Sequence[float], margin: Sequence[float]) -> str:
    """The largest accuracy; of equal ones the larger margin, then the first."""
    place: int = max(range(len(names)), key=lambda k: (accuracy[k], margin[k], -k))
    return names[place]


@dataclass(frozen=True)
class Worth:
    """What held-out pairs say of a run after its last step."""

    margin: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class Judge:
    """The held-out pairs at `rows`, and the noise of having no more of them."""

    heldout: PairSet
    rows: Tensor
    seed: int

    @cached_property
    def resamples(self) -> Values:
        """The same of everything that is judged."""
        return weights(len(self.rows), self.seed)

    def right(self, margins: Tensor) -> Values:
        """Whether the judging pairs have a margin above 0, (parts, J) of (parts, M) margins."""
        right: Values = (margins[:, self.rows] > 0).double().numpy()
        return right

    def worth(self, margins: Tensor) -> Worth:
        """The mean over (parts, M) margins of runs."""
        of_pairs: Values = margins[:, self.rows].mean(dim=0).numpy()
        right = self.right(margins).mean(axis=0)
        return Worth(estimate(of_pairs, self.resamples), estimate(right, self.resamples))

    def concepts(self, margins: Tensor) -> dict[str, Worth]:
        """`worth` of the judging pairs of each concept."""
        names = dict.fromkeys(self.heldout.pairs[row].concept for row in self.rows.tolist())
        return {name: self.of_concept(name).worth(margins) for name in names}

    def of_concept(self, name: str) -> Judge:
        """The judging pairs of a concept, of which there may be none."""
        mine = [row for row in self.rows.tolist() if self.heldout.pairs[row].concept == name]
        return Judge(self.heldout, tensor(mine, dtype=self.rows.dtype), self.seed)
