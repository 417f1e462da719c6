"""margincast bounds"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from margincast.cli.job import open_job
from margincast.cli.options import OutputOptions, same
from margincast.recipe.fields import option
from margincast.recipe.recipe import Recipe

if TYPE_CHECKING:
    from margincast.theory.distribution import PreferenceDistribution

DISTRIBUTION = "Preference distribution"
TOKENS = ("distinct", "chain", "shared")


@dataclass(frozen=True, kw_only=True)
class DistributionOptions:
    """The preference distribution of the theorems, and the flow on it."""

    K: int = option(4, "Concepts", DISTRIBUTION)
    Q: int = option(100, "Training pairs per cluster; N = 2KQ", DISTRIBUTION)
    d: int = option(500, "Hidden width", DISTRIBUTION)
    shared_norm: float = option(0.4, "l_b, length of the component all share", DISTRIBUTION)
    noise: float = option(0.025, "v, standard deviation per coordinate", DISTRIBUTION)
    tokens: str = option(
        "distinct", "Which concepts share response tokens: {choices}", DISTRIBUTION, choices=lambda: TOKENS
    )
    Z: int = option(2, "Concepts per token, for --tokens chain", DISTRIBUTION)
    beta: float = same(Recipe, "beta")
    tau: float = option(1.0, "Time constant of the flow")

    def distribution(self) -> PreferenceDistribution:
        """Raises `InputError` for numbers that make none, a bad beta or tau among them."""
        from margincast.theory.distribution import preference_distribution
        from margincast.theory.guarantee import tau_1

        distribution = preference_distribution(
            self.K, self.Q, self.d, self.shared_norm, self.noise, self.tokens, self.Z
        )
        tau_1(distribution, self.beta, self.tau)
        return distribution


def bounds(options: DistributionOptions, output: OutputOptions) -> None:
    """Theorems 4.1 and 4.2 for given K, Q, d, l_b, v: conditions, envelopes, probabilities, printed and corrected.

    Example: margincast bounds --K 4 --Q 100 --d 500 --shared_norm 0.4 --noise 0.025
    """
    from margincast.report.bounds import bound_tables
    from margincast.theory.bounds import bounds as bounds_of

    distribution = options.distribution()
    job = open_job("bounds", output, options)
    summary = job.keep(bounds_of(distribution, options.beta, options.tau))
    for table in bound_tables(summary["results"]):
        job.table(table.caption, table.header, table.rows)
    job.done(summary)
